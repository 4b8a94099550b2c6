"""Image transforms, the same for training and serving: Pillow images -> pixels, and pixels -> images.

Source: CLIP's preprocessing for input images; for drawn ones that of VAR's released utils/data.py, with a
centre crop.
"""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from model.errors import UserError

# Shape legend: H W = height and width.

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
# The whole picture is resized before it is cropped, as CLIP and VAR do, so its shape decides what that costs.
# At this limit 11 million pixels for `7b`; a picture beyond it would be shown as less than a thirtieth of
# itself.
MAX_ASPECT_RATIO = 32


def rgb_on_white(image: Image.Image) -> Image.Image:
    """The picture in 8-bit RGB, transparent places white; 16-bit grey keeps its upper bits."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert("RGB")


def check_shape(image: Image.Image) -> None:
    """Raise UserError for a picture without pixels or narrower than `MAX_ASPECT_RATIO`."""
    width, height = image.size
    if min(width, height) == 0:
        raise UserError(f"a picture of {width} x {height} pixels shows nothing")
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise UserError(
            f"a picture of {width} x {height} pixels is too narrow: "
            f"the longer side may be at most {MAX_ASPECT_RATIO} times the shorter"
        )


def _central_square(
    image: Image.Image, size: int, shorter_side: int, resample: Image.Resampling
) -> np.ndarray:
    """Resize the shorter side, then cut out the central `size` x `size`: floats in [0, 1], (H, W, 3)."""
    check_shape(image)
    image = rgb_on_white(image)
    factor = shorter_side / min(image.size)
    width, height = (max(shorter_side, round(side * factor)) for side in image.size)
    if image.size != (width, height):
        image = image.resize((width, height), resample)
    left, top = (width - size) // 2, (height - size) // 2
    if (width, height) != (size, size):
        image = image.crop((left, top, left + size, top + size))
    return np.asarray(image, dtype=np.float32) / 255


def vision_pixels(image: Image.Image, size: int) -> Tensor:
    """An input image as the vision tower takes it, (3, size, size), normalised as CLIP was trained."""
    pixels_HW3 = (_central_square(image, size, size, Image.Resampling.BICUBIC) - CLIP_MEAN) / CLIP_STD
    return torch.from_numpy(pixels_HW3.astype(np.float32)).permute(2, 0, 1)


def drawn_pixels(image: Image.Image, size: int, margin: float) -> Tensor:
    """An image to be drawn as the image tokenizer takes it, (3, size, size) in [-1, 1]."""
    pixels_HW3 = _central_square(image, size, round(size * margin), Image.Resampling.LANCZOS)
    return torch.from_numpy(pixels_HW3 * 2 - 1).permute(2, 0, 1)


def picture(pixels_3HW: Tensor) -> Image.Image:
    """Pixels in [0, 1] as a picture; rounded, not cut off."""
    bytes_HW3 = (pixels_3HW.float().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0)
    return Image.fromarray(bytes_HW3.cpu().numpy())
