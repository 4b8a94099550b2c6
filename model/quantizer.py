"""The multi-scale residual quantizer: a latent map becomes codes at growing sides, and codes add up to a
canvas.

Everything is computed in float32: autocast is off inside, as in VAR, for in bfloat16 3 of 100 codes are
others. Weights may lie in bfloat16; then codebook and convolutions are rounded once, and nothing is after
that.

Source: algorithms 1 and 2 of arXiv:2404.02905; spec sections 2.2 to 2.5.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ImageTokenizerConfig

# Shape legend: B = batch, Z = latent channels, H W = finest grid, s = side of a scale, N = s * s, M = tokens
# of all scales but the first, L = M + 1, P = vectors, V = codebook size.

COMMITMENT_WEIGHT = 0.25
# What soft_targets of codes fall with is at least this.
MIN_DISTANCE = 1e-6
REFINER_SHARE = 0.5


def refiner_of_scale(num_scales: int, num_refiners: int) -> list[int]:
    """Which of the shared refining convolutions serves each scale, coarse to fine: the nearest tick.

    Scales 2 and 7 of the published 10 are ties that float64 rounding decides, so this must stay in numpy's
    float64 and in this order of operations.
    """
    margin = 1 / 3 / num_refiners if num_refiners == 4 else 1 / 2 / num_refiners
    ticks = np.linspace(margin, 1 - margin, num_refiners)
    return [int(np.argmin(np.abs(ticks - k / max(num_scales - 1, 1)))) for k in range(num_scales)]


def without_autocast(device: torch.device) -> AbstractContextManager:
    """Switches autocast off for a device, where it has one."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


class Quantized(NamedTuple):
    """What training an image tokenizer needs of one pass; `canvas` carries the gradient straight through.

    `vectors` (P, Z) are what each scale's codes stood for, in the codes' order.
    """

    codes: list[Tensor]
    canvas: Tensor
    loss: Tensor
    vectors: list[Tensor]


class SelfCorrected(NamedTuple):
    """What a pyramid with replacements asks for: codes of every scale (B, N), what they stand for (B, N, Z),
    and the teacher-forcing input, (B, M, Z).
    """

    codes: list[Tensor]
    cells: list[Tensor]
    seen: Tensor


class Refiner(nn.Conv2d):
    """Half the map as it is, half convolved: repairs what enlarging the codes has smeared."""

    def __init__(self, latent_dim: int) -> None:
        super().__init__(latent_dim, latent_dim, kernel_size=3, padding=1)

    def forward(self, x_BZHW: Tensor) -> Tensor:
        with without_autocast(x_BZHW.device):
            convolved_BZHW = F.conv2d(x_BZHW, self.weight.float(), self.bias.float(), padding=self.padding)
        return x_BZHW * (1 - REFINER_SHARE) + convolved_BZHW * REFINER_SHARE


class MultiScaleQuantizer(nn.Module):
    """One codebook shared by all scales; Euclidean nearest neighbour."""

    def __init__(self, config: ImageTokenizerConfig) -> None:
        super().__init__()
        self.scales = config.scales
        self.codebook = nn.Embedding(config.codebook_size, config.latent_dim)
        self.refiners = nn.ModuleList(Refiner(config.latent_dim) for _ in range(config.num_refiners))
        self.refiner_index = refiner_of_scale(len(config.scales), config.num_refiners)

    def distances(self, vectors_PZ: Tensor) -> Tensor:
        """Squared distance to every codebook vector, (P, V)."""
        vectors_PZ, codebook_VZ = vectors_PZ.float(), self.codebook.weight.float()
        lengths_PV = vectors_PZ.square().sum(1, keepdim=True) + codebook_VZ.square().sum(1)
        with without_autocast(vectors_PZ.device):
            return lengths_PV.addmm(vectors_PZ, codebook_VZ.mT, alpha=-2)

    def nearest(self, vectors_PZ: Tensor) -> Tensor:
        """Index of the closest codebook vector, (P,)."""
        return self.distances(vectors_PZ).argmin(dim=1)

    def upsample(self, vectors_BNZ: Tensor, k: int) -> Tensor:
        """What the vectors of scale k add to the canvas, (B, Z, H, W)."""
        side, finest = self.scales[k], self.scales[-1]
        map_BZss = vectors_BNZ.float().mT.unflatten(2, (side, side))
        if side != finest:
            map_BZss = F.interpolate(map_BZss, size=(finest, finest), mode="bicubic")
        return self.refiners[self.refiner_index[k]](map_BZss.contiguous())

    def lookup(self, codes_BN: Tensor, k: int) -> Tensor:
        """What the codes of scale k add to the canvas, (B, Z, H, W)."""
        return self.upsample(self.codebook(codes_BN), k)

    def downsample(self, map_BZHW: Tensor, k: int) -> Tensor:
        """The map averaged over the cells of scale k, (B, Z, s, s)."""
        return F.interpolate(map_BZHW, size=(self.scales[k],) * 2, mode="area")

    def encode(self, latent_BZHW: Tensor) -> list[Tensor]:
        """Codes of every scale, coarse to fine: each takes up what the coarser ones left over."""
        rest_BZHW, codes = latent_BZHW.float(), []
        for k in range(len(self.scales)):
            codes.append(self._code_of(self._cells(rest_BZHW, k)))
            rest_BZHW = rest_BZHW - self.lookup(codes[-1], k)
        return codes

    def _cells(self, rest_BZHW: Tensor, k: int) -> Tensor:
        """What is left to express, averaged over the cells of scale k, (B, N, Z)."""
        is_finest = k == len(self.scales) - 1
        return (rest_BZHW if is_finest else self.downsample(rest_BZHW, k)).flatten(2).mT

    def _code_of(self, cells_BNZ: Tensor) -> Tensor:
        return self.nearest(cells_BNZ.flatten(0, 1)).view(cells_BNZ.shape[:2])

    def encode_with_replacements(self, latent_BZHW: Tensor, replacements: list[Tensor]) -> SelfCorrected:
        """Codes of every scale and teacher-forcing input, as `encode` and `seen`, when replacements are drawn
        on the way: each scale then takes up what right and wrong codes before it have left over.

        `replacements` are, for each scale, the codes to draw instead of the right ones, -1 where none,
        (B, N). Source: self-correction of arXiv:2412.04431, with whole codes instead of bits.
        """
        latent_BZHW = latent_BZHW.float()
        canvas_BZHW, codes, cells, maps = torch.zeros_like(latent_BZHW), [], [], []
        for k, replacements_BN in enumerate(replacements):
            if k > 0:
                maps.append(self.downsample(canvas_BZHW, k).flatten(2).mT)
            cells.append(self._cells(latent_BZHW - canvas_BZHW, k))
            codes.append(self._code_of(cells[-1]))
            drawn_BN = torch.where(replacements_BN < 0, codes[-1], replacements_BN)
            canvas_BZHW = canvas_BZHW + self.lookup(drawn_BN, k)
        return SelfCorrected(codes, cells, self._joined(maps, len(latent_BZHW)))

    def soft_targets(self, cells: list[Tensor], softness: float) -> Tensor:
        """Shares of all codes in what the codes of each scale stand for, `cells` (B, N, Z): (B, L, V).

        Which of several near codes is the nearest is noise to whoever predicts it, and any of them draws the
        same picture. Shares fall with the squared distance, by e for every `softness` of the mean squared
        distance between a code and its nearest other; with 0 the nearest has all. Source: label smoothing of
        arXiv:1512.00567, spread by distance in the codebook instead of evenly.
        """
        apart_VV = self.distances(self.codebook.weight).fill_diagonal_(float("inf"))
        unit = (softness * apart_VV.amin(dim=1).mean()).clamp(min=MIN_DISTANCE)
        distance_BLV = self.distances(torch.cat(cells, dim=1).flatten(0, 1)).unflatten(0, (len(cells[0]), -1))
        return (-distance_BLV / unit).softmax(dim=-1)

    def canvas(self, codes: list[Tensor]) -> Tensor:
        """The sum of what all given scales add, (B, Z, H, W); fewer scales give a coarser picture."""
        return sum(self.lookup(codes_BN, k) for k, codes_BN in enumerate(codes))

    def seen(self, codes: list[Tensor]) -> Tensor:
        """Teacher-forcing input: the canvas before each scale but the first, at its side, (B, M, Z)."""
        canvas_BZHW, maps = 0, []
        for k, codes_BN in enumerate(codes[:-1]):
            canvas_BZHW = canvas_BZHW + self.lookup(codes_BN, k)
            maps.append(self.downsample(canvas_BZHW, k + 1).flatten(2).mT)
        return self._joined(maps, len(codes[0]))

    def _joined(self, maps: list[Tensor], count: int) -> Tensor:
        nothing_BMZ = self.codebook.weight.new_zeros(count, 0, self.codebook.embedding_dim).float()
        return torch.cat([nothing_BMZ, *maps], dim=1)

    def forward(self, latent_BZHW: Tensor) -> Quantized:
        """Quantize for training: loss = mean over scales of the codebook term and 0.25 times the commitment
        term.
        """
        latent_BZHW = latent_BZHW.float()
        canvas_BZHW, loss, codes = torch.zeros_like(latent_BZHW), latent_BZHW.new_zeros(()), []
        fixed_BZHW, vectors = latent_BZHW.detach(), []
        for k in range(len(self.scales)):
            cells_BNZ = self._cells(fixed_BZHW - canvas_BZHW.detach(), k)
            vectors.append(cells_BNZ.flatten(0, 1))
            codes.append(self._code_of(cells_BNZ))
            canvas_BZHW = canvas_BZHW + self.lookup(codes[-1], k)
            commitment = F.mse_loss(canvas_BZHW.detach(), latent_BZHW)
            loss = loss + COMMITMENT_WEIGHT * commitment + F.mse_loss(canvas_BZHW, fixed_BZHW)
        straight_BZHW = latent_BZHW + (canvas_BZHW - latent_BZHW).detach()
        return Quantized(codes, straight_BZHW, loss / len(self.scales), vectors)
