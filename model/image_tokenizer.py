"""The image tokenizer, a multi-scale VQ-VAE: autoencoder and quantizer together, pixels <-> codes.

Source: arXiv:2404.02905; spec section 2.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from model.autoencoder import Decoder, Encoder, conv3
from model.config import ImageTokenizerConfig
from model.errors import UserError
from model.quantizer import MultiScaleQuantizer, Quantized

# Shape legend: B = batch, Z = latent channels, H W = finest grid, N = tokens of one scale, L = tokens of all
# scales, M = tokens of all scales but the first.


class Reconstruction(NamedTuple):
    """One training pass: pixels (not clamped) and what the quantizer did."""

    pixels: Tensor
    quantized: Quantized


class ImageTokenizer(nn.Module):
    """Pixels in [-1, 1], (B, 3, image_size, image_size), to codes of every scale and back."""

    def __init__(self, config: ImageTokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.to_latent = conv3(config.latent_dim, config.latent_dim)
        self.from_latent = conv3(config.latent_dim, config.latent_dim)
        self.quantizer = MultiScaleQuantizer(config)

    def latent(self, pixels_B3HW: Tensor) -> Tensor:
        """The map that is quantized, (B, Z, H, W)."""
        return self.to_latent(self.encoder(pixels_B3HW))

    def encode(self, pixels_B3HW: Tensor) -> list[Tensor]:
        """Codes of every scale, coarse to fine, each (B, N). ValueError when the image has another size."""
        size = self.config.image_size
        if pixels_B3HW.shape[1:] != (3, size, size):
            raise UserError(f"images must be (3, {size}, {size}), got {tuple(pixels_B3HW.shape[1:])}")
        return self.quantizer.encode(self.latent(pixels_B3HW))

    def decode_canvas(self, canvas_BZHW: Tensor) -> Tensor:
        """Pixels in [-1, 1] of a canvas, in the type of the weights."""
        return self._pixels(canvas_BZHW).clamp(-1, 1)

    def _pixels(self, canvas_BZHW: Tensor) -> Tensor:
        return self.decoder(self.from_latent(canvas_BZHW.to(self.from_latent.weight.dtype)))

    def decode(self, codes: list[Tensor]) -> Tensor:
        """Pixels in [-1, 1] of codes; the first few scales alone give a coarser picture."""
        return self.decode_canvas(self.quantizer.canvas(codes))

    def split(self, codes_BL: Tensor) -> list[Tensor]:
        """Flat codes of the pyramid, (B, L), by scale."""
        return list(codes_BL.split([side * side for side in self.config.scales], dim=1))

    def forward(self, pixels_B3HW: Tensor) -> Reconstruction:
        """Pixels to pixels with gradients, for training the tokenizer itself."""
        quantized = self.quantizer(self.latent(pixels_B3HW))
        return Reconstruction(self._pixels(quantized.canvas), quantized)


class TeacherForcing(NamedTuple):
    """Codes (B, L), the canvases that they are predicted from (B, M, Z), and soft_targets of all codes in
    each, (B, L, V), where targets are soft.
    """

    codes: Tensor
    seen: Tensor
    soft_targets: Tensor | None = None


@torch.no_grad()
def teacher_forcing(
    tokenizer: ImageTokenizer, pixels_B3HW: Tensor, replacements_BL: Tensor | None, softness: float = 0.0
) -> TeacherForcing:
    """What is asked of whoever predicts these pictures, in spite of replacements; targets are soft only with
    replacements and where `softness`, as in `MultiScaleQuantizer.soft_targets`, is above 0.
    """
    quantizer = tokenizer.quantizer
    if replacements_BL is None:
        codes = tokenizer.encode(pixels_B3HW)
        return TeacherForcing(torch.cat(codes, dim=1), quantizer.seen(codes))
    return teacher_forcing_from_latent(tokenizer, tokenizer.latent(pixels_B3HW), replacements_BL, softness)


@torch.no_grad()
def teacher_forcing_from_latent(
    tokenizer: ImageTokenizer, latent_BZHW: Tensor, replacements_BL: Tensor, softness: float
) -> TeacherForcing:
    """The same for what is quantized of the pictures."""
    asked = tokenizer.quantizer.encode_with_replacements(latent_BZHW, tokenizer.split(replacements_BL))
    soft_targets_BLV = tokenizer.quantizer.soft_targets(asked.cells, softness) if softness else None
    return TeacherForcing(torch.cat(asked.codes, dim=1), asked.seen, soft_targets_BLV)
