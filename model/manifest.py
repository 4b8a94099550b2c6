"""The manifest of a folder: name, size and SHA-256 of every file, to find damage before use."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from model.errors import UserError

MANIFEST = "manifest.json"
COMPLETE = "COMPLETE"
LINEAGE = "lineage.json"
WEIGHTS_SUFFIX = ".safetensors"
# Written after the manifest on purpose: the marker and the lineage record both quote its hash.
UNLISTED = frozenset({MANIFEST, COMPLETE, LINEAGE})
# Files hashed at the same time: a core hashes half a gigabyte a second or more, a disk reads several.
HASHING_THREADS = 8


def sha256_file(path: Path) -> str:
    """SHA-256 of the content of one file, as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_files(files: Mapping[str, Path]) -> dict[str, str]:
    """SHA-256 of the content of many files at once, by the names that they are given under."""
    with ThreadPoolExecutor(HASHING_THREADS) as pool:
        return dict(zip(files, pool.map(sha256_file, files.values()), strict=True))


def _listed_files(folder: Path) -> dict[str, Path]:
    """The files that a manifest lists, by relative POSIX path; hidden files are left out."""
    found = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {
        name.as_posix(): path
        for name, path in found.items()
        if name.as_posix() not in UNLISTED and not any(part.startswith(".") for part in name.parts)
    }


def write_manifest(folder: Path, hashes: Mapping[str, str] | None = None) -> str:
    """Write manifest.json for everything in the folder, flushed to the disk, and return its own SHA-256.

    Args:
        hashes: SHA-256 of files by name, as far as they are known; others are read.
    """
    files = _listed_files(folder)
    unread = {name: path for name, path in files.items() if not hashes or name not in hashes}
    known = {**(hashes or {}), **sha256_files(unread)}
    entries = {name: {"sha256": known[name], "bytes": path.stat().st_size} for name, path in files.items()}
    with (folder / MANIFEST).open("w", encoding="ascii") as file:
        file.write(json.dumps(entries, indent=1, sort_keys=True) + "\n")
        file.flush()
        os.fsync(file.fileno())
    return manifest_sha256(folder)


def manifest_sha256(folder: Path) -> str:
    """SHA-256 of the manifest, and with it of the content of the whole folder."""
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise UserError(f"{path} is missing: the folder has no manifest")
    return sha256_file(path)


def read_manifest(folder: Path) -> dict[str, dict[str, str | int]]:
    """The entries of manifest.json by file name; UserError when it is missing or no manifest."""
    path = Path(folder) / MANIFEST
    try:
        entries = json.loads(path.read_text(encoding="ascii"))
        return {name: {"sha256": entry["sha256"], "bytes": entry["bytes"]} for name, entry in entries.items()}
    except FileNotFoundError:
        raise UserError(f"{path} is missing: the folder has no manifest") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a manifest: {error}") from None


def link_or_copy(source: Path | str, target: Path | str) -> None:
    """Give a file a second name, which takes no room; copy it where the file system cannot do that.

    Neither name may be written to afterwards, only replaced: both are the same bytes.
    """
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def link_published(source: Path, target: Path) -> None:
    """Put what the manifest of a folder names, and nothing else, into another folder; no hash is checked.

    Weights are hard links, which take no room; small files, which somebody may edit in place, are copied. The
    manifest comes last: a folder that has one is whole.
    """
    for name in (*sorted(read_manifest(source)), MANIFEST):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).unlink(missing_ok=True)
        put = link_or_copy if name.endswith(WEIGHTS_SUFFIX) else shutil.copyfile
        # What a symbolic link names, not the link.
        put((source / name).resolve(), target / name)


def verify(folder: Path, only: frozenset[str] | None = None) -> None:
    """Raise a UserError that names the first file which is missing, altered, or not in the manifest.

    Args:
        only: Read these files alone; of the others, name and size are checked.
    """
    folder = Path(folder)
    entries, found = read_manifest(folder), _listed_files(folder)
    if missing := sorted(entries.keys() - found.keys()):
        raise UserError(f"{folder / missing[0]} is missing, though the manifest names it")
    if extra := sorted(found.keys() - entries.keys()):
        raise UserError(f"{folder / extra[0]} is not in the manifest")
    for name, entry in entries.items():
        if (size := found[name].stat().st_size) != entry["bytes"]:
            raise UserError(f"{found[name]} has {size} bytes, the manifest says {entry['bytes']}")
    refuse_altered({name: found[name] for name in entries if only is None or name in only}, entries)


def refuse_altered(files: Mapping[str, Path], entries: Mapping[str, Mapping[str, str | int]]) -> None:
    """Raise a UserError that names the first of these files whose content is not that of its entry."""
    for name, digest in sha256_files(files).items():
        if digest != (expected := entries[name]["sha256"]):
            raise UserError(f"{files[name]} has SHA-256 {digest}, the manifest says {expected}")
