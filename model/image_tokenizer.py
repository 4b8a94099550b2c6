"""The image tokenizer, a multi-scale VQ-VAE: pixels <-> codes. Autoencoder and quantizer together.

Source: arXiv:2404.02905 and VAR's released models/vqvae.py.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from model.autoencoder import Decoder, Encoder, conv3
from model.config import ImageTokenizerConfig
from model.errors import UserError
from model.quantizer import MultiScaleQuantizer, Quantized
from model.scales import num_tokens

# Shape legend: B = batch, Z = latent channels, H W = height and width, N = tokens of one scale, L = tokens of
# all scales, M = tokens of all scales but the first, V = codebook size.

# The parts that only encoding needs.
ENCODING = ("encoder", "to_latent")


class Reconstruction(NamedTuple):
    """One training pass: decoded pixels, not clamped, and the quantizer's result."""

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

    def detach_encoder(self) -> nn.ModuleDict:
        """Take out what only encoding needs, for training on codes; `attach_encoder` puts it back."""
        taken = nn.ModuleDict({name: getattr(self, name) for name in ENCODING})
        for name in ENCODING:
            # The name keeps its place among the others, and weights their order.
            setattr(self, name, None)
        return taken

    def attach_encoder(self, taken: nn.ModuleDict) -> None:
        """Put back what `detach_encoder` took out."""
        for name, module in taken.items():
            setattr(self, name, module)

    def latent(self, pixels_B3HW: Tensor) -> Tensor:
        """The latent map, before it is quantized, (B, Z, H, W). UserError for images of another size."""
        if self.encoder is None:
            raise UserError("this image tokenizer has no encoder now: give codes, not pixels")
        size = self.config.image_size
        if pixels_B3HW.shape[1:] != (3, size, size):
            raise UserError(f"images must be (3, {size}, {size}), got {tuple(pixels_B3HW.shape[1:])}")
        return self.to_latent(self.encoder(pixels_B3HW.to(self.to_latent.weight.dtype)))

    def encode(self, pixels_B3HW: Tensor) -> list[Tensor]:
        """Codes of every scale, coarse to fine, each (B, N). UserError for images of another size."""
        return self.quantizer.encode(self.latent(pixels_B3HW))

    def decode_canvas(self, canvas_BZHW: Tensor) -> Tensor:
        """Pixels in [-1, 1] of a canvas, in the weights' type."""
        return self._pixels(canvas_BZHW).clamp(-1, 1)

    def _pixels(self, canvas_BZHW: Tensor) -> Tensor:
        return self.decoder(self.from_latent(canvas_BZHW.to(self.from_latent.weight.dtype)))

    def decode(self, codes: list[Tensor]) -> Tensor:
        """Pixels in [-1, 1] of codes; the first few scales alone give a coarser image."""
        return self.decode_canvas(self.quantizer.canvas(codes))

    def split(self, codes_BL: Tensor) -> list[Tensor]:
        """Codes of all scales in one sequence, (B, L), as one tensor for each scale, (B, N)."""
        if codes_BL.shape[1:] != (num_tokens(self.config.scales),):
            raise UserError(
                f"codes must be (B, {num_tokens(self.config.scales)}), got {tuple(codes_BL.shape)}"
            )
        return list(codes_BL.split([side * side for side in self.config.scales], dim=1))

    def decoder_input(self, codes_BL: Tensor) -> Tensor:
        """Teacher-forcing input of the visual decoder for codes in one sequence, (B, M, Z)."""
        return self.quantizer.decoder_input(self.split(codes_BL))

    def forward(self, pixels_B3HW: Tensor) -> Reconstruction:
        """Pixels to pixels with gradients, for training the tokenizer itself."""
        quantized = self.quantizer(self.latent(pixels_B3HW))
        return Reconstruction(self._pixels(quantized.canvas), quantized)


class TeacherForcing(NamedTuple):
    """What the visual decoder is fed and should predict, for images that are known.

    The right codes, (B, L); the input of all scales but the first, (B, M, Z); and, where targets are soft,
    soft labels over the codebook, (B, L, V), else None.
    """

    codes: Tensor
    decoder_input: Tensor
    soft_targets: Tensor | None = None


@torch.no_grad()
def teacher_forcing(
    tokenizer: ImageTokenizer,
    pixels_B3HW: Tensor,
    replacements_BL: Tensor | None = None,
    softness: float = 0.0,
) -> TeacherForcing:
    """Inputs and targets of the visual decoder for images.

    Args:
        replacements_BL: Codes that are fed in place of the right ones, -1 for none, for learning to correct
            errors (`MultiScaleQuantizer.encode_with_replacements`).
        softness: Above 0, targets are soft (`MultiScaleQuantizer.soft_targets`).
    """
    if replacements_BL is None and not softness:
        codes = tokenizer.encode(pixels_B3HW)
        return TeacherForcing(torch.cat(codes, dim=1), tokenizer.quantizer.decoder_input(codes))
    latent_BZHW = tokenizer.latent(pixels_B3HW)
    if replacements_BL is None:
        shape = len(pixels_B3HW), num_tokens(tokenizer.config.scales)
        replacements_BL = torch.full(shape, -1, device=pixels_B3HW.device)
    return teacher_forcing_from_latent(tokenizer, latent_BZHW, replacements_BL, softness)


@torch.no_grad()
def teacher_forcing_from_latent(
    tokenizer: ImageTokenizer, latent_BZHW: Tensor, replacements_BL: Tensor, softness: float
) -> TeacherForcing:
    """As `teacher_forcing`, for latent maps of images."""
    corrected = tokenizer.quantizer.encode_with_replacements(latent_BZHW, tokenizer.split(replacements_BL))
    soft_targets_BLV = tokenizer.quantizer.soft_targets(corrected.residuals, softness) if softness else None
    return TeacherForcing(torch.cat(corrected.codes, dim=1), corrected.decoder_input, soft_targets_BLV)
