"""The multi-scale residual quantizer: latent map -> codes of every scale, and codes -> canvas.

Scale by scale, from coarse to fine, the part of the latent map that is not yet expressed (the residual) is
averaged to the scale's side and replaced by the nearest codebook vectors; these are enlarged, refined by a
convolution and added to the canvas (f-hat in the paper), which approaches the latent map.

Everything is computed in float32: autocast is off inside, as in VAR, because in bfloat16 3 of 100 codes come
out differently. Weights may lie in bfloat16: they are read as float32, so that only their own rounding
remains.

Source: algorithms 1 and 2 of arXiv:2404.02905 and VAR's released models/quant.py.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ImageTokenizerConfig

# Shape legend: B = batch, Z = latent channels, H W = height and width of the finest scale, s = side of a
# scale, N = s * s, L = tokens of all scales, M = those of all but the first, P = vectors, V = codebook size.

COMMITMENT_WEIGHT = 0.25
# Softness 0 would divide by zero.
MIN_TEMPERATURE = 1e-6
REFINED_SHARE = 0.5


def refiner_of_scale(num_scales: int, num_refiners: int) -> list[int]:
    """Index of the refining convolution that each scale uses, coarse to fine; neighbouring scales share one.

    Scales 2 and 7 of the published 10 are ties that float64 rounding decides, so this must stay in numpy's
    float64 and in this order of operations.
    """
    margin = 1 / 3 / num_refiners if num_refiners == 4 else 1 / 2 / num_refiners
    ticks = np.linspace(margin, 1 - margin, num_refiners)
    return [int(np.argmin(np.abs(ticks - k / max(num_scales - 1, 1)))) for k in range(num_scales)]


def without_autocast(device: torch.device) -> AbstractContextManager:
    """A context in which autocast is off for a device, where it has autocast at all."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


class Quantized(NamedTuple):
    """Result of a training pass of the quantizer.

    Codes of every scale, each (B, N); the canvas, whose gradient goes straight through to the latent map; the
    loss; and the vectors of each scale that were quantized, (P, Z), in the order of the codes.
    """

    codes: list[Tensor]
    canvas: Tensor
    loss: Tensor
    vectors: list[Tensor]


class SelfCorrection(NamedTuple):
    """Result of encoding with replaced codes, of every scale.

    The nearest codes (B, N); the residuals that they quantize (B, N, Z); and the input from which the visual
    decoder has to predict them, (B, M, Z).
    """

    codes: list[Tensor]
    residuals: list[Tensor]
    decoder_input: Tensor


class Refiner(nn.Conv2d):
    """Mean of a map and its 3x3 convolution; repairs what enlarging the codebook vectors has blurred."""

    def __init__(self, latent_dim: int) -> None:
        super().__init__(latent_dim, latent_dim, kernel_size=3, padding=1)

    def forward(self, x_BZHW: Tensor) -> Tensor:
        with without_autocast(x_BZHW.device):
            convolved_BZHW = F.conv2d(x_BZHW, self.weight.float(), self.bias.float(), padding=self.padding)
        return x_BZHW * (1 - REFINED_SHARE) + convolved_BZHW * REFINED_SHARE


class MultiScaleQuantizer(nn.Module):
    """Nearest neighbours, by Euclidean distance, in one codebook that all scales share."""

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
        """Index of the nearest codebook vector, (P,)."""
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
        """A map averaged to the side of scale k, as a sequence of its positions, (B, N, Z)."""
        side = self.scales[k]
        return F.interpolate(map_BZHW, size=(side, side), mode="area").flatten(2).mT

    def encode(self, latent_BZHW: Tensor) -> list[Tensor]:
        """Codes of every scale, coarse to fine, each (B, N)."""
        residual_BZHW, codes = latent_BZHW.float(), []
        for k in range(len(self.scales)):
            codes.append(self._codes_of(self._residuals_at(residual_BZHW, k)))
            residual_BZHW = residual_BZHW - self.lookup(codes[-1], k)
        return codes

    def _residuals_at(self, residual_BZHW: Tensor, k: int) -> Tensor:
        """The vectors that scale k quantizes, (B, N, Z)."""
        is_finest = k == len(self.scales) - 1
        return residual_BZHW.flatten(2).mT if is_finest else self.downsample(residual_BZHW, k)

    def _codes_of(self, residuals_BNZ: Tensor) -> Tensor:
        return self.nearest(residuals_BNZ.flatten(0, 1)).view(residuals_BNZ.shape[:2])

    def encode_with_replacements(self, latent_BZHW: Tensor, replacements: list[Tensor]) -> SelfCorrection:
        """Codes of every scale when some codes are replaced on the way, and the decoder's input to match.

        A replaced code goes into the canvas in place of the nearest one, so the residual of the scales after
        it, and with it their nearest codes, make up for the error.

        Source: self-correction of arXiv:2412.04431, with whole codes instead of bits.

        Args:
            replacements: Codes of each scale to put in place of the nearest ones, (B, N), -1 for none.
        """
        latent_BZHW = latent_BZHW.float()
        canvas_BZHW, codes, residuals, inputs = torch.zeros_like(latent_BZHW), [], [], []
        for k, replacements_BN in enumerate(replacements):
            if k > 0:
                inputs.append(self.downsample(canvas_BZHW, k))
            residuals.append(self._residuals_at(latent_BZHW - canvas_BZHW, k))
            codes.append(self._codes_of(residuals[-1]))
            used_BN = torch.where(replacements_BN < 0, codes[-1], replacements_BN)
            canvas_BZHW = canvas_BZHW + self.lookup(used_BN, k)
        return SelfCorrection(codes, residuals, self._concatenated(inputs, len(latent_BZHW)))

    def soft_targets(self, residuals: list[Tensor], softness: float) -> Tensor:
        """Soft labels over the codebook for the residuals (B, N, Z) of every scale, (B, L, V).

        They are a softmax of negative squared distances. Its temperature is `softness` times the mean squared
        distance between a codebook vector and its nearest other, so that 0 leaves the nearest code alone.
        Which of several near codes is the nearest is noise to a model that predicts it, and each of them
        draws the same image. Source: label smoothing of arXiv:1512.00567, by distance instead of evenly.
        """
        between_VV = self.distances(self.codebook.weight).fill_diagonal_(float("inf"))
        temperature = (softness * between_VV.amin(dim=1).mean()).clamp(min=MIN_TEMPERATURE)
        distances_PV = self.distances(torch.cat(residuals, dim=1).flatten(0, 1))
        return (-distances_PV.unflatten(0, (len(residuals[0]), -1)) / temperature).softmax(dim=-1)

    def canvas(self, codes: list[Tensor]) -> Tensor:
        """The sum of what all given scales add, (B, Z, H, W); fewer scales give a coarser image."""
        return sum(self.lookup(codes_BN, k) for k, codes_BN in enumerate(codes))

    def decoder_input(self, codes: list[Tensor]) -> Tensor:
        """Teacher-forcing input of the visual decoder, for all scales but the first, (B, M, Z).

        For each scale it is the canvas of the scales before, averaged to its side.
        """
        canvas_BZHW, inputs = 0, []
        for k, codes_BN in enumerate(codes[:-1]):
            canvas_BZHW = canvas_BZHW + self.lookup(codes_BN, k)
            inputs.append(self.downsample(canvas_BZHW, k + 1))
        return self._concatenated(inputs, len(codes[0]))

    def _concatenated(self, inputs: list[Tensor], count: int) -> Tensor:
        """Inputs of all scales as one sequence, (B, M, Z), which is empty where there is one scale only."""
        empty_BMZ = self.codebook.weight.new_zeros(count, 0, self.codebook.embedding_dim).float()
        return torch.cat([empty_BMZ, *inputs], dim=1)

    def forward(self, latent_BZHW: Tensor) -> Quantized:
        """Quantize with gradients; the loss is the mean over scales of codebook + 0.25 * commitment loss."""
        latent_BZHW = latent_BZHW.float()
        canvas_BZHW, loss, codes = torch.zeros_like(latent_BZHW), latent_BZHW.new_zeros(()), []
        fixed_BZHW, vectors = latent_BZHW.detach(), []
        for k in range(len(self.scales)):
            residuals_BNZ = self._residuals_at(fixed_BZHW - canvas_BZHW.detach(), k)
            vectors.append(residuals_BNZ.flatten(0, 1))
            codes.append(self._codes_of(residuals_BNZ))
            canvas_BZHW = canvas_BZHW + self.lookup(codes[-1], k)
            commitment = F.mse_loss(canvas_BZHW.detach(), latent_BZHW)
            loss = loss + COMMITMENT_WEIGHT * commitment + F.mse_loss(canvas_BZHW, fixed_BZHW)
        straight_BZHW = latent_BZHW + (canvas_BZHW - latent_BZHW).detach()
        return Quantized(codes, straight_BZHW, loss / len(self.scales), vectors)
