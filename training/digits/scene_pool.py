"""All scenes of a split in memory, as tensors: pixels and attributes, read from the prepared tar shards."""

import io
import json
import tarfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from model.errors import UserError
from training.digits.scenes import BACKGROUNDS, COLORS

# Shape legend: S = scenes, B = batch, H W = height and width.


@dataclass(frozen=True)
class ScenePool:
    """Scenes as tensors: pixels, uint8, (S, 3, H, W), and indices of digit, colour and background, (S,)."""

    pixels: Tensor
    digits: Tensor
    colors: Tensor
    backgrounds: Tensor

    def to(self, device: torch.device) -> "ScenePool":
        """The same pool on a device."""
        return ScenePool(
            *(values.to(device) for values in (self.pixels, self.digits, self.colors, self.backgrounds))
        )

    def __len__(self) -> int:
        return len(self.digits)

    def pixels_at(self, index_B: Tensor) -> Tensor:
        """Pixels of some scenes, in [-1, 1], (B, 3, H, W)."""
        return self.pixels[index_B].float() / 127.5 - 1


def read_pool(folder: Path, split: str) -> ScenePool:
    """All scenes of a split. UserError when there are none."""
    paths = sorted(folder.glob(f"{split}-*.tar"))
    if not paths:
        raise UserError(f"no shards {split}-*.tar in {folder}; prepare the data with: vargpt data prepare")
    pixels, facts = [], []
    for path in paths:
        with tarfile.open(path) as tar:
            for member in tar:
                content = tar.extractfile(member).read()
                if member.name.endswith(".png"):
                    pixels.append(np.asarray(Image.open(io.BytesIO(content)).convert("RGB")))
                else:
                    facts.append(json.loads(content))
    names, grounds = list(COLORS), list(BACKGROUNDS)
    return ScenePool(
        torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous(),
        torch.tensor([fact["digit"] for fact in facts]),
        torch.tensor([names.index(fact["color"]) for fact in facts]),
        torch.tensor([grounds.index(fact["background"]) for fact in facts]),
    )


def batch_indices(step: int, batch_size: int, dataset_size: int, seed: int) -> Tensor:
    """Indices of the samples of one step, (B,): each epoch has every sample once, in an order of its own."""
    numbers = torch.arange(step * batch_size, (step + 1) * batch_size)
    orders = {
        epoch: _epoch_order(epoch, dataset_size, seed)
        for epoch in (numbers // dataset_size).unique().tolist()
    }
    return torch.stack([orders[n // dataset_size][n % dataset_size] for n in numbers.tolist()])


@lru_cache(maxsize=4)
def _epoch_order(epoch: int, size: int, seed: int) -> Tensor:
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
