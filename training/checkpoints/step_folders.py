"""Folders of checkpoints: `FOLDER/step_N`, written beside its place, moved there whole, and found again.

A step is written as `step_N.tmp`, gets a manifest with the SHA-256 of every file and `COMPLETE`, which quotes
the hash of the manifest, and is renamed. A step that turns out damaged is renamed `*.damaged`. One process
alone commits and renames.
"""

import logging
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from model.errors import UserError
from model.manifest import COMPLETE, manifest_sha256, verify, write_manifest

logger = logging.getLogger(__name__)

# `.old` is a step that is being written a second time; it counts until the new one is in place.
COMMITTED = re.compile(r"step_(\d+)(\.old)?")
DAMAGED = re.compile(r"step_(\d+)(\.old)?\.damaged(-\d+)?")
UNFINISHED = re.compile(r"step_(\d+)\.tmp")
# Unfinished ones of processes that are gone, to be deleted.
ABANDONED = re.compile(r"step_(\d+)\.tmp\.abandoned(-\d+)?")
# Room for the JSON files and the directory itself, on top of the tensors.
SPARE_BYTES = 1 << 20


class SaveError(OSError):
    """A checkpoint could not be written; earlier ones are untouched."""


def unfinished_path(folder: Path, step: int) -> Path:
    """Where the files of a step are written before it is committed."""
    return folder / f"step_{step}.tmp"


def step_path(folder: Path, step: int) -> Path:
    """The folder of a committed step. UserError when there is none."""
    for path in (folder / f"step_{step}", folder / f"step_{step}.old"):
        if path.is_dir():
            return path
    raise UserError(f"{folder} has no step {step}")


def step_of(path: Path) -> int:
    """The number of a step's folder."""
    return int(path.name.removeprefix("step_").partition(".")[0])


def check_free_space(folder: Path, num_bytes: int) -> None:
    """Raise OSError when a disk has not this much room."""
    needed = num_bytes + SPARE_BYTES
    if (free := shutil.disk_usage(folder).free) < needed:
        raise OSError(f"No space left on device: {needed} bytes are needed, {free} are free")


def commit(folder: Path, step: int, hashes: Mapping[str, str], keep: int) -> Path:
    """Seal a step whose files are written and flushed, move it into place, delete all but the newest `keep`.

    Args:
        hashes: SHA-256 of files by name, as far as they are known; others are read.
    """
    written, final = unfinished_path(folder, step), folder / f"step_{step}"
    marker = written / COMPLETE
    marker.write_text(write_manifest(written, hashes) + "\n", encoding="ascii")
    flush(marker)
    flush(written)
    old = final.with_name(f"{final.name}.old")
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(final, old)
    os.replace(written, final)
    flush(folder)
    shutil.rmtree(old, ignore_errors=True)
    _prune(folder, step, keep)
    return final


def committed_steps(folder: Path) -> list[Path]:
    """Folders of committed steps, the newest first."""
    return _matching(folder, COMMITTED)[::-1]


def abandon_unfinished(folder: Path) -> list[Path]:
    """Rename what an earlier process left when it was killed while saving; all that can be deleted by now.

    Only for who owns the folder. Deleting what is as large as a checkpoint takes time; names are free now.
    """
    for path in _matching(folder, UNFINISHED):
        target = _renamed(path, "abandoned")
        logger.warning("the checkpoint %s was never finished: it is deleted, as %s", path, target.name)
    return _matching(folder, ABANDONED)


def unfinished_bytes(folder: Path) -> int:
    """Size of all unfinished and abandoned steps below a folder, whose room a new start gets back."""
    files = folder.glob("**/step_*.tmp*/*")
    return sum(file.stat().st_size for file in files if file.is_file())


def num_bytes(folder: Path) -> int:
    """Size of all files below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def verify_step(path: Path, only: frozenset[str] | None = None) -> None:
    """Raise UserError that names the file of a committed step which is wrong or missing.

    Args:
        only: Read these files alone; all are looked for.
    """
    marker = path / COMPLETE
    if not marker.is_file():
        raise UserError(f"{marker} is missing: it was never finished")
    if marker.read_bytes().strip() != manifest_sha256(path).encode():
        raise UserError(f"{marker} does not quote the hash of the manifest")
    verify(path, only)


def mark_damaged(path: Path, reason: str) -> None:
    """Rename a step so that nothing resumes from it, and say why."""
    target = _renamed(path, "damaged")
    logger.warning("checkpoint %s is damaged and was renamed %s: %s", path, target.name, reason)


def remove_unfinished(folder: Path) -> None:
    """Delete what an earlier process left when it was killed while saving."""
    for path in abandon_unfinished(folder):
        shutil.rmtree(path)


def what_is_left(folder: Path) -> str:
    """Which step a training could still resume from, for messages."""
    steps = [str(step_of(path)) for path in _matching(folder, COMMITTED)]
    return f"step {steps[-1]} is still there" if steps else "there is no earlier step"


def flush(path: Path) -> None:
    """Have the kernel write a file, or the names in a directory, to the disk before returning."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _renamed(path: Path, suffix: str) -> Path:
    """Where a step now is, under a name with a suffix that no other one has."""
    target, number = path.with_name(f"{path.name}.{suffix}"), 1
    while target.exists():
        number += 1
        target = path.with_name(f"{path.name}.{suffix}-{number}")
    os.replace(path, target)
    return target


def _prune(folder: Path, just_saved: int, keep: int) -> None:
    """Delete all but the newest `keep` steps, and damaged ones older still; never the step just saved."""
    others = [path for path in _matching(folder, COMMITTED) if step_of(path) != just_saved]
    kept = others[max(len(others) - keep + 1, 0) :]
    oldest = min([just_saved, *(step_of(path) for path in kept)])
    stale = [path for path in _matching(folder, DAMAGED) if step_of(path) < oldest]
    for path in [path for path in others if path not in kept] + stale:
        try:
            shutil.rmtree(path)
        except OSError as error:
            logger.warning("the old checkpoint %s could not be removed: %s", path, error)


def _matching(folder: Path, pattern: re.Pattern[str]) -> list[Path]:
    """Sub-folders with a matching name, oldest step first; of two for one step, the replaced one first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if path.is_dir() and pattern.fullmatch(path.name)]
    return sorted(found, key=lambda path: (step_of(path), not path.name.endswith(".old")))
