"""Where a model comes from: one record of hashes beside the weights, and the walk that verifies it back."""

import dataclasses
import hashlib
import json
import logging
import os
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from model.errors import UserError
from model.manifest import LINEAGE, manifest_sha256, verify

logger = logging.getLogger(__name__)

GIT_COMMIT_TAG = "mlflow.source.git.commit"
TAG_PREFIX = "vargpt."
# What the pipeline itself writes into the tree while it runs: not a change of the code that ran.
WRITTEN_BY_RUNS = ("dvc.lock", "artifacts", "metrics", "plots")


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """What identifies a model from data to bento; None is what is not known yet, or never was."""

    data_md5: str
    config_sha256: str
    git_commit: str | None = None
    git_dirty: bool | None = None
    run_id: str | None = None
    model_version: str | None = None
    weights_sha256: str | None = None
    bento_tag: str | None = None

    def tags(self) -> dict[str, str]:
        """The record as MLflow tags; the commit also under the name that MLflow's own pages show."""
        known = {key: value for key, value in dataclasses.asdict(self).items() if value is not None}
        texts = {key: json.dumps(value) if type(value) is bool else value for key, value in known.items()}
        tags = {f"{TAG_PREFIX}{key}": value for key, value in texts.items()}
        return tags | ({GIT_COMMIT_TAG: self.git_commit} if self.git_commit else {})


@dataclass(frozen=True)
class HashCheck:
    """One link of the chain: what the record says, what was found (None for nothing)."""

    name: str
    recorded: str | None
    found: str | None
    is_right: bool


def data_md5(dvc_file: Path) -> str:
    """The hash by which a .dvc file names its data; a folder's ends in `.dir`."""
    try:
        outs = yaml.safe_load(Path(dvc_file).read_text(encoding="utf-8"))["outs"]
        [md5] = [out["md5"] for out in outs]
    except FileNotFoundError:
        raise UserError(f"{dvc_file} does not exist: which data was used is not known") from None
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{dvc_file} does not name one output with an md5: {error!r}") from None
    return str(md5)


def data_path(dvc_file: Path) -> Path:
    """Where the data of a .dvc file lies."""
    data_md5(dvc_file)
    [out] = yaml.safe_load(Path(dvc_file).read_text(encoding="utf-8"))["outs"]
    return Path(dvc_file).parent / out["path"]


def md5_on_disk(path: Path) -> str:
    """The hash that DVC gives a file or folder as it lies, computed without DVC."""
    path = Path(path)
    if path.is_file():
        return _file_md5(path)
    if not path.is_dir():
        raise UserError(f"{path} does not exist")
    files = sorted((part.relative_to(path).as_posix(), part) for part in path.rglob("*") if part.is_file())
    listing = [{"md5": _file_md5(part), "relpath": name} for name, part in files]
    return (
        hashlib.md5(json.dumps(listing, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"
    )


def config_sha256(config: Mapping[str, Any]) -> str:
    """The hash of a configuration as it ran; the order of keys does not matter."""
    text = json.dumps(config, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def git_facts(
    root: Path, commit: str | None = None, is_dirty: bool | None = None
) -> tuple[str | None, bool | None]:
    """Commit of the tree at `root` and whether it was changed since; what is given counts without git.

    Files that the pipeline itself writes (metrics, dvc.lock ...) do not make a tree dirty.
    """
    if not (Path(root) / ".git").exists():
        return commit or None, is_dirty
    head = _git(root, "rev-parse", "HEAD")
    if head is None:
        return commit or None, is_dirty
    ignored = [f":(exclude){name}" for name in WRITTEN_BY_RUNS]
    changes = _git(root, "status", "--porcelain", "--", ".", *ignored)
    return head, None if changes is None else bool(changes)


def write_lineage(record: Lineage, folder: Path) -> None:
    """Write lineage.json beside the weights, whole or not at all."""
    path = Path(folder) / LINEAGE
    # Hidden, because a stray file beside the weights would make the folder's manifest wrong.
    beside = path.with_name(f".{LINEAGE}.tmp")
    beside.write_text(json.dumps(dataclasses.asdict(record), indent=1) + "\n", encoding="utf-8")
    os.replace(beside, path)


def read_lineage(folder: Path) -> Lineage:
    """The record beside the weights; a ValueError names the file when it is missing or not one."""
    path = Path(folder) / LINEAGE
    try:
        return Lineage(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: where the model comes from is not known") from None
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is not a lineage record: {error}") from None


def trace_lineage(
    folder: Path, root: Path, dvc_file: str = "data.dvc", config: Mapping[str, Any] | None = None
) -> list[HashCheck]:
    """Check every hash from a model folder back to the data; raises only when there is no record to follow.

    Args:
        root: The repository, which holds `dvc_file`, the data, and the history of the code.
        config: The configuration to hold against the recorded hash; left out, it is not checked.
    """
    record, pointer = read_lineage(folder), Path(root) / dvc_file
    checks = [
        _weights_check(record, Path(folder)),
        _check("data pointer", record.data_md5, _found(data_md5, pointer)),
        _check("data", record.data_md5, _found(lambda path: md5_on_disk(data_path(path)), pointer)),
        _commit_check(record, root),
    ]
    if config is not None:
        checks.append(_check("config", record.config_sha256, config_sha256(config)))
    return checks


def _weights_check(record: Lineage, folder: Path) -> HashCheck:
    try:
        verify(folder)
        found = manifest_sha256(folder)
    except ValueError as error:
        return HashCheck("weights", record.weights_sha256, str(error), False)
    return _check("weights", record.weights_sha256, found)


def _commit_check(record: Lineage, root: Path) -> HashCheck:
    """A commit is right when the history of the repository knows it and nothing was changed beside it."""
    known = None
    if record.git_commit and (Path(root) / ".git").exists():
        known = _git(root, "rev-parse", "--verify", "--quiet", f"{record.git_commit}^{{commit}}")
    if known and record.git_dirty:
        return HashCheck(
            "git commit", record.git_commit, f"{known}, with changes that were not committed", False
        )
    return _check("git commit", record.git_commit, known)


def _check(name: str, recorded: str | None, found: str | None) -> HashCheck:
    return HashCheck(name, recorded, found, recorded is not None and recorded == found)


def _found(measure: Callable[[Path], str], path: Path) -> str:
    try:
        return measure(path)
    except ValueError as error:
        return str(error)


def _file_md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _git(root: Path, *arguments: str) -> str | None:
    """What git answers, or None where git is missing or refuses."""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
        )
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        logger.warning("git %s: %s", arguments[0], getattr(error, "stderr", None) or error)
        return None
    return done.stdout.strip()
