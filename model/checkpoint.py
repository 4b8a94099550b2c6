"""Saved models: a folder of sharded safetensors, config, processor, and a manifest with the hash of every
file.
"""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError

from model.config import VargptConfig
from model.errors import UserError
from model.manifest import manifest_sha256, verify, write_manifest
from model.modeling import VargptForConditionalGeneration
from model.processing import VargptProcessor
from model.vargpt import PARTS
from model.weight_files import MAX_SHARD, opened_safetensors, reading_error

__all__ = ["load_model", "manifest_sha256", "save_model", "verify"]


def save_model(model: VargptForConditionalGeneration, processor: VargptProcessor, folder: Path) -> str:
    """Write model and processor to a folder; the SHA-256 of its manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder, max_shard_size=MAX_SHARD)
    processor.save_pretrained(folder)
    return write_manifest(folder)


def load_model(
    folder: Path, dtype: torch.dtype | None = None, device: str = "cpu"
) -> tuple[VargptForConditionalGeneration, VargptProcessor]:
    """Load what `save_model` wrote, in evaluation mode.

    Args:
        dtype: Type of the weights; by default as saved.

    Raises:
        UserError: the folder is no model, or its weights are not exactly those that its config asks for.
        OSError: a disk failed.
    """
    folder = Path(folder)
    read_config(folder)
    _refuse_parts_alone(folder)
    try:
        # Without a check of our own, transformers would fill what is missing with random numbers.
        model, found = VargptForConditionalGeneration.from_pretrained(
            folder,
            dtype=dtype or "auto",
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except (SafetensorError, OSError) as error:
        raise reading_error(folder, error) from error
    for kind in ("missing", "unexpected", "mismatched"):
        if names := sorted(str(name) for name in found[f"{kind}_keys"]):
            raise UserError(f"{folder} has {kind} weights: {', '.join(names[:5])}")
    return model.to(device).eval(), VargptProcessor.from_pretrained(folder, local_files_only=True)


def _refuse_parts_alone(folder: Path) -> None:
    """Raise UserError where whole parts of the model are not there, as in an import that is not complete."""
    found = set()
    for file in folder.glob("*.safetensors"):
        with opened_safetensors(file) as weights:
            found |= {name.partition(".")[0] for name in weights.keys()}  # noqa: SIM118 - no dictionary
    if found and (missing := [part for part in PARTS if part not in found]):
        raise UserError(
            f"{folder} is no whole model, it lacks {', '.join(missing)}: complete it with "
            f"vargpt import-weights --base {folder} ..."
        )


def read_config(folder: Path) -> VargptConfig:
    """The configuration of a saved model. UserError when the folder is none of ours."""
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder} is not a model: it has no config.json")
    try:
        kind = json.loads(path.read_text(encoding="utf-8")).get("model_type")
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path} is not a configuration: {error}") from None
    if kind != VargptConfig.model_type:
        raise UserError(f"{path} is of a model of type {kind!r}, not {VargptConfig.model_type!r}")
    return VargptConfig.from_pretrained(folder, local_files_only=True)
