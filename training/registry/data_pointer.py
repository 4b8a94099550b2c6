"""Data by the hash that DVC gives it: what a .dvc file says, and the same hash of the files themselves."""

import hashlib
import json
from pathlib import Path
from typing import Any

import yaml

from model.errors import UserError


def data_md5(dvc_file: Path) -> str:
    """The hash by which a .dvc file names its data; a folder's ends in `.dir`."""
    return md5_in(_text(dvc_file), str(dvc_file))


def md5_in(text: str, name: str) -> str:
    """The hash in the text of a .dvc file; `name` is for the message of the UserError."""
    return str(_output(text, name)["md5"])


def data_path(dvc_file: Path) -> Path:
    """Where the data of a .dvc file lies."""
    return Path(dvc_file).parent / _output(_text(dvc_file), str(dvc_file))["path"]


def _text(dvc_file: Path) -> str:
    try:
        return Path(dvc_file).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{dvc_file} does not exist: which data was used is not known") from None


def _output(text: str, name: str) -> dict[str, Any]:
    try:
        [out] = yaml.safe_load(text)["outs"]
        return {"path": out.get("path"), "md5": out["md5"]}
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{name} does not name one output with an md5: {error!r}") from None


def md5_on_disk(path: Path) -> str:
    """The hash that DVC gives a file or folder as it lies, computed without DVC."""
    path = Path(path)
    if path.is_file():
        return _file_md5(path)
    if not path.is_dir():
        raise UserError(f"{path} does not exist")
    files = sorted((part.relative_to(path).as_posix(), part) for part in path.rglob("*") if part.is_file())
    listing = [{"md5": _file_md5(part), "relpath": name} for name, part in files]
    text = json.dumps(listing, sort_keys=True)
    return f"{hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()}.dir"


def _file_md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
