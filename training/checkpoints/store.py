"""Checkpoints that one process writes and reads: tensors.safetensors and state.json in a step's folder."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.errors import UserError
from training.checkpoints.state_trees import refuse_what_json_alters, with_own_storage
from training.checkpoints.step_folders import (
    SaveError,
    check_free_space,
    commit,
    committed_steps,
    flush,
    mark_damaged,
    remove_unfinished,
    step_of,
    step_path,
    unfinished_path,
    verify_step,
    what_is_left,
)

TENSORS, STATE = "tensors.safetensors", "state.json"


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
    refuse_non_finite(tensors, step)
    written = unfinished_path(folder, step)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_unfinished(folder)
        _write(written, with_own_storage(tensors), state)
        return commit(folder, step, {}, keep)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(written, ignore_errors=True)
        remaining = what_is_left(folder)
        raise SaveError(f"step {step} could not be saved in {folder}: {error}; {remaining}") from error


def refuse_non_finite(tensors: Mapping[str, Tensor], step: int) -> None:
    """Raise NonFiniteError that names a tensor with an infinity or NaN."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise NonFiniteError(f"step {step} is not saved: {name} has values that are not finite")


def load_latest(folder: Path) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
    """Step, tensors (on the CPU) and state of the newest intact step, or None; see `newest_step`."""
    step = newest_step(folder)
    return None if step is None else (step, *load_step(folder, step))


def newest_step(folder: Path) -> int | None:
    """The newest step whose files all match their hashes, or None.

    Steps that are damaged are renamed `*.damaged` on the way, unfinished ones are deleted.
    """
    remove_unfinished(folder)
    for path in committed_steps(folder):
        try:
            verify_step(path)
        except ValueError as error:
            mark_damaged(path, str(error))
        else:
            return step_of(path)
    return None


def load_step(folder: Path, step: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (on the CPU) and state of a step that `newest_step` has verified."""
    path = step_path(folder, step)
    return load_file(path / TENSORS), json.loads((path / STATE).read_text(encoding="utf-8"))


def _write(written: Path, tensors: dict[str, Tensor], state: Mapping[str, Any]) -> None:
    check_free_space(
        written.parent, sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    )
    written.mkdir()
    save_file(tensors, written / TENSORS)
    (written / STATE).write_text(json.dumps(state), encoding="utf-8")
    for path in written.iterdir():
        flush(path)
