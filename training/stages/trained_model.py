"""The model that a stage has made, written file by file: frozen weights from its start, learned ones from
parts.

No process ever holds the whole model: one file of weights at a time is in memory.
"""

import shutil
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.manifest import UNLISTED, write_manifest
from training.checkpoints.fragments import Fragments
from training.params import LoraParams
from training.stages.lora import merged

WEIGHTS = "*.safetensors"


def write_trained_model(
    start: Path, fragments: Fragments, kind: str, folder: Path, lora: LoraParams | None = None
) -> str:
    """Write a model folder; the SHA-256 of its manifest.

    Args:
        start: The folder of the model that the stage started from.
        kind: The kind of state that is published: `weight` or `average`.
        lora: Of adapters that are merged.
    """
    folder.mkdir(parents=True)
    for path in sorted(path for path in start.rglob("*") if path.is_file() and path.name not in UNLISTED):
        target = folder / path.relative_to(start)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.match(WEIGHTS):
            _write_weights(path, fragments, kind, target, lora)
        else:
            shutil.copyfile(path, target)
    return write_manifest(folder)


def _write_weights(
    path: Path, fragments: Fragments, kind: str, target: Path, lora: LoraParams | None
) -> None:
    with safe_open(path, "pt") as file:
        tensors = {
            name: _learned(file.get_tensor(name), name, fragments, kind, lora) for name in file.offset_keys()
        }
        save_file(tensors, target, file.metadata())


def _learned(started: Tensor, name: str, fragments: Fragments, kind: str, lora: LoraParams | None) -> Tensor:
    """A weight of the new model, in the type of the one that it replaces."""
    if name in fragments.kinds:
        return fragments.whole(kind, name, started.shape).to(started.dtype)
    return started if lora is None else merged(started, name, fragments, kind, lora)
