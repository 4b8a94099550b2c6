"""A model as a folder: sharded safetensors, config, processor, and a manifest with the hash of every file."""

from pathlib import Path

import torch

from model.errors import UserError
from model.manifest import manifest_sha256, verify, write_manifest
from model.modeling import VargptForConditionalGeneration
from model.processing import VargptProcessor

__all__ = ["load_model", "manifest_sha256", "save_model", "verify"]

MAX_SHARD = "5GB"


def save_model(model: VargptForConditionalGeneration, processor: VargptProcessor, folder: Path) -> str:
    """Write the published form; returns the hash of its manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder, max_shard_size=MAX_SHARD)
    processor.save_pretrained(folder)
    return write_manifest(folder)


def load_model(
    folder: Path, dtype: torch.dtype | None = None, device: str = "cpu"
) -> tuple[VargptForConditionalGeneration, VargptProcessor]:
    """Load what `save_model` wrote, in evaluation mode. ValueError when the folder is no model."""
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} is not a model: it has no config.json")
    model = VargptForConditionalGeneration.from_pretrained(
        folder, dtype=dtype or "auto", local_files_only=True
    )
    return model.to(device).eval(), VargptProcessor.from_pretrained(folder, local_files_only=True)
