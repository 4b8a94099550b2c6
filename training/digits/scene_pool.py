"""The pool of scenes that backbones learn from, whole in memory: pixels and attributes from tar shards."""

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
    """Pixels (S, 3, H, W) as bytes, and the index of digit, colour and background of each, (S,)."""

    pixels: Tensor
    digits: Tensor
    colors: Tensor
    backgrounds: Tensor

    def to(self, device: torch.device) -> "ScenePool":
        """The same pool in the memory of a device."""
        return ScenePool(
            *(part.to(device) for part in (self.pixels, self.digits, self.colors, self.backgrounds))
        )

    def __len__(self) -> int:
        return len(self.digits)

    def pixels_at(self, index_B: Tensor) -> Tensor:
        """Pixels in [-1, 1], (B, 3, H, W)."""
        return self.pixels[index_B].float() / 127.5 - 1


def read_pool(folder: Path, split: str) -> ScenePool:
    """All scenes of a split. ValueError when there are none."""
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


def batch_at(step: int, batch: int, size: int, seed: int) -> Tensor:
    """Indices of the scenes of one step: each epoch has every scene once, in an order of its own, (B,)."""
    places = torch.arange(step * batch, (step + 1) * batch)
    orders = {epoch: _order(epoch, size, seed) for epoch in (places // size).unique().tolist()}
    return torch.stack([orders[place // size][place % size] for place in places.tolist()])


@lru_cache(maxsize=4)
def _order(epoch: int, size: int, seed: int) -> Tensor:
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
