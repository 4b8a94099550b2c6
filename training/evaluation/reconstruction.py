"""Reconstruction error of the image tokenizer on real pictures, which bounds how good drawings can be."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from model.image_tokenizer import ImageTokenizer
from model.processing import VargptProcessor
from model.transforms import drawn_pixels, picture

# Shape legend: B = pictures, H W = height and width.

LEAST_ERROR = 1e-10  # a picture without any error would have no PSNR; this one has 100 dB


@dataclass(frozen=True)
class Reconstructions:
    """Pictures after encoding and decoding, and the mean of their PSNR in decibels."""

    pictures: list[Image.Image]
    psnr: float


@torch.no_grad()
def reconstruct(
    tokenizer: ImageTokenizer,
    processor: VargptProcessor,
    pictures: Sequence[Image.Image],
    batch: int,
    progress: Callable[[int], None] = lambda done: None,
) -> Reconstructions:
    """Encode pictures to codes and decode them again.

    `progress` is called with how many are done.
    """
    parameter = next(tokenizer.parameters())
    decoded, psnr = [], []
    for first in range(0, len(pictures), batch):
        members = pictures[first : first + batch]
        rows = [drawn_pixels(image, processor.drawn_size, processor.crop_margin) for image in members]
        wanted_B3HW = torch.stack(rows)
        codes = tokenizer.encode(wanted_B3HW.to(parameter.device, parameter.dtype))
        got_B3HW = tokenizer.decode(codes).float().cpu()
        psnr.append(_psnr(wanted_B3HW, got_B3HW))
        decoded += [picture((pixels + 1) / 2) for pixels in got_B3HW]
        progress(len(decoded))
    return Reconstructions(decoded, float(torch.cat(psnr).mean()))


def _psnr(wanted_B3HW: Tensor, got_B3HW: Tensor) -> Tensor:
    """Of each picture, (B,); pixels in [-1, 1]."""
    error_B = ((wanted_B3HW - got_B3HW) / 2).square().mean(dim=(1, 2, 3))
    return -10 * error_B.clamp(min=LEAST_ERROR).log10()
