"""Checkpoint store: atomic step folders with SHA-256 manifests.

`FOLDER/step_N/` holds tensors.safetensors, state.json, manifest.json and COMPLETE, which quotes the hash of
the manifest. A step is written as `step_N.tmp` and renamed when it is complete. A damaged step is renamed
`*.damaged`, and the one before it is used. Rank zero alone writes and chooses (`newest_step`); the training
loop broadcasts the choice and every rank calls `load_step`.
"""

import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.errors import UserError
from model.manifest import COMPLETE, manifest_sha256, verify, write_manifest
from training.checkpoints.state_trees import refuse_what_json_alters, with_own_storage

logger = logging.getLogger(__name__)

TENSORS, STATE = "tensors.safetensors", "state.json"
# `.old` is a step that is being written a second time; it counts until the new one is in place.
COMMITTED = re.compile(r"step_(\d+)(\.old)?")
DAMAGED = re.compile(r"step_(\d+)(\.old|\.tmp)?\.damaged(-\d+)?")
UNFINISHED = re.compile(r"step_(\d+)\.tmp")
# Room for the JSON files and the directory itself, on top of the tensors.
SPARE_BYTES = 1 << 20


class SaveError(OSError):
    """A checkpoint could not be written; earlier ones are untouched."""


class NonFiniteError(ArithmeticError):
    """A tensor of a checkpoint is not finite: it is not written."""


def save_step(
    folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], keep: int = 2
) -> Path:
    """Commit one step, then delete all but the newest `keep`. An error leaves earlier steps untouched.

    Args:
        state: What JSON preserves (text keys, no tuples); use `flatten_state` for anything else.

    Returns:
        The folder of the step.

    Raises:
        SaveError: the disk failed or is full.
        NonFiniteError: names a tensor with an infinity or NaN.
        UserError: JSON would alter the state.
    """
    if step < 0 or keep < 1:
        raise UserError(f"step must be at least 0 and keep at least 1, got step={step}, keep={keep}")
    refuse_what_json_alters(state, f"the state of step {step}")
    _refuse_non_finite(tensors, step)
    folder = Path(folder)
    final, temporary = folder / f"step_{step}", folder / f"step_{step}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_unfinished(folder)
        _write(temporary, with_own_storage(tensors), state)
        _move_into_place(temporary, final)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        remaining = _newest_remaining(folder)
        raise SaveError(f"step {step} could not be saved in {folder}: {error}; {remaining}") from error
    _prune(folder, step, keep)
    return final


def _refuse_non_finite(tensors: Mapping[str, Tensor], step: int) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise NonFiniteError(f"step {step} is not saved: {name} has values that are not finite")


def load_latest(folder: Path) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
    """Step, tensors (on the CPU) and state of the newest intact step, or None; see `newest_step`."""
    step = newest_step(folder)
    return None if step is None else (step, *load_step(folder, step))


def newest_step(folder: Path) -> int | None:
    """The newest step whose files all match their hashes, or None.

    Steps that are damaged or unfinished are renamed `*.damaged` on the way.
    """
    folder = Path(folder)
    for path in _matching(folder, UNFINISHED):
        _rename_damaged(path, "it was never finished")
    for path in reversed(_matching(folder, COMMITTED)):
        try:
            _verify_step(path)
        except ValueError as error:
            _rename_damaged(path, str(error))
        else:
            return _step_of(path)
    return None


def load_step(folder: Path, step: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (on the CPU) and state of a step that `newest_step` has verified."""
    path = Path(folder) / f"step_{step}"
    if not path.is_dir():
        path = path.with_name(f"step_{step}.old")
    if not path.is_dir():
        raise UserError(f"{folder} has no step {step}")
    return load_file(path / TENSORS), json.loads((path / STATE).read_text(encoding="utf-8"))


def _verify_step(path: Path) -> None:
    """Raise ValueError that names the file which is wrong or missing."""
    marker = path / COMPLETE
    if not marker.is_file():
        raise UserError(f"{marker} is missing: it was never finished")
    if marker.read_bytes().strip() != manifest_sha256(path).encode():
        raise UserError(f"{marker} does not quote the hash of the manifest")
    verify(path)
    if missing := [name for name in (TENSORS, STATE) if not (path / name).is_file()]:
        raise UserError(f"{path / missing[0]} is missing")


def _write(temporary: Path, tensors: dict[str, Tensor], state: Mapping[str, Any]) -> None:
    needed = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) + SPARE_BYTES
    if (free := shutil.disk_usage(temporary.parent).free) < needed:
        raise OSError(f"No space left on device: {needed} bytes are needed, {free} are free")
    temporary.mkdir()
    save_file(tensors, temporary / TENSORS)
    (temporary / STATE).write_text(json.dumps(state), encoding="utf-8")
    for path in temporary.iterdir():
        _flush(path)
    marker = temporary / COMPLETE
    marker.write_text(write_manifest(temporary) + "\n", encoding="ascii")
    _flush(marker)
    _flush(temporary)


def _move_into_place(temporary: Path, final: Path) -> None:
    old = final.with_name(f"{final.name}.old")
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(final, old)
    os.replace(temporary, final)
    _flush(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def _flush(path: Path) -> None:
    """Have the kernel write a file, or the names in a directory, to the disk before returning."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _prune(folder: Path, just_saved: int, keep: int) -> None:
    """Delete all but the newest `keep` steps, and damaged ones older still; never the step just saved."""
    others = [path for path in _matching(folder, COMMITTED) if _step_of(path) != just_saved]
    kept = others[len(others) - keep + 1 :]
    oldest = min([just_saved, *(_step_of(path) for path in kept)])
    stale = [path for path in _matching(folder, DAMAGED) if _step_of(path) < oldest]
    for path in [path for path in others if path not in kept] + stale:
        try:
            shutil.rmtree(path)
        except OSError as error:
            logger.warning("the old checkpoint %s could not be removed: %s", path, error)


def _remove_unfinished(folder: Path) -> None:
    for path in _matching(folder, UNFINISHED):
        logger.warning("removing the unfinished checkpoint %s", path)
        shutil.rmtree(path)


def _rename_damaged(path: Path, reason: str) -> None:
    target, number = path.with_name(f"{path.name}.damaged"), 1
    while target.exists():
        number += 1
        target = path.with_name(f"{path.name}.damaged-{number}")
    os.replace(path, target)
    logger.warning("checkpoint %s is damaged and was renamed %s: %s", path, target.name, reason)


def _matching(folder: Path, pattern: re.Pattern[str]) -> list[Path]:
    """Sub-folders with a matching name, oldest step first; of two for one step, the replaced one first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if path.is_dir() and pattern.fullmatch(path.name)]
    return sorted(found, key=lambda path: (_step_of(path), not path.name.endswith(".old")))


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step_").partition(".")[0])


def _newest_remaining(folder: Path) -> str:
    steps = [str(_step_of(path)) for path in _matching(folder, COMMITTED)]
    return f"step {steps[-1]} is still there" if steps else "there is no earlier step"
