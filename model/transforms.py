"""Pictures to pixels and back: the same transforms for training and serving.

Source: CLIP's preprocessing for input images, VAR's for drawn ones (spec section 2.5).
"""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

# Shape legend: H W = height and width.

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def _square(image: Image.Image, size: int, enlarged: int, resample: Image.Resampling) -> np.ndarray:
    """Shorter side to `enlarged`, then the central square, as floats in [0, 1], (H, W, 3)."""
    image = image.convert("RGB")
    width, height = image.size
    factor = enlarged / min(width, height)
    sides = (max(enlarged, round(width * factor)), max(enlarged, round(height * factor)))
    if image.size != sides:
        image = image.resize(sides, resample)
    left, top = (sides[0] - size) // 2, (sides[1] - size) // 2
    if sides != (size, size):
        image = image.crop((left, top, left + size, top + size))
    return np.asarray(image, dtype=np.float32) / 255


def vision_pixels(image: Image.Image, size: int) -> Tensor:
    """An input image as the vision tower takes it, (3, size, size), normalised as CLIP was trained."""
    pixels_HW3 = (_square(image, size, size, Image.Resampling.BICUBIC) - CLIP_MEAN) / CLIP_STD
    return torch.from_numpy(pixels_HW3.astype(np.float32)).permute(2, 0, 1)


def drawn_pixels(image: Image.Image, size: int, margin: float) -> Tensor:
    """An image to be drawn as the image tokenizer takes it, (3, size, size) in [-1, 1]."""
    pixels_HW3 = _square(image, size, round(size * margin), Image.Resampling.LANCZOS)
    return torch.from_numpy(pixels_HW3 * 2 - 1).permute(2, 0, 1)


def picture(pixels_3HW: Tensor) -> Image.Image:
    """Pixels in [0, 1] as a picture; rounded, not cut off."""
    bytes_HW3 = (pixels_3HW.float().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0)
    return Image.fromarray(bytes_HW3.cpu().numpy())
