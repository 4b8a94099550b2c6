"""Laws of the image transforms: shorter side resized, centre cropped, in work that no picture can blow up."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model.errors import UserError
from model.transforms import CLIP_MEAN, CLIP_STD, MAX_ASPECT_RATIO, drawn_pixels, picture, vision_pixels

ROOT = Path(__file__).parents[2]
ORDINARY_SIZES = [(32, 32), (400, 300), (300, 400), (640, 480), (77, 401), (401, 77), (640, 80), (80, 640)]


def noise(width, height):
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def resized_then_cropped(image, shorter_side, size, resample):
    """The definition of CLIP's and VAR's transforms: shorter side resized, then the central square."""
    width, height = image.size
    factor = shorter_side / min(width, height)
    resized = image.resize((round(width * factor), round(height * factor)), resample)
    left, top = (resized.width - size) // 2, (resized.height - size) // 2
    values = np.asarray(resized.crop((left, top, left + size, top + size)), dtype=np.float32)
    return torch.from_numpy(values / 255).permute(2, 0, 1)


@pytest.mark.parametrize("size", ORDINARY_SIZES)
def test_pixels_are_exactly_those_of_resizing_and_then_cropping(size):
    image = noise(*size)
    mean, std = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))

    seen, drawn = vision_pixels(image, 56), drawn_pixels(image, 64, margin=1.125)

    expected = resized_then_cropped(image, 56, 56, Image.Resampling.BICUBIC)
    assert torch.equal(seen, ((expected - mean) / std).float())
    assert torch.equal(drawn, resized_then_cropped(image, 72, 64, Image.Resampling.LANCZOS) * 2 - 1)


@pytest.mark.parametrize(
    ("width", "height"),
    [(8000, 1), (1, 4_000_000), (MAX_ASPECT_RATIO + 1, 1), (10, 10 * MAX_ASPECT_RATIO + 1)],
)
def test_a_picture_too_narrow_to_show_anything_is_refused_with_the_limit(width, height):
    image = Image.new("RGB", (width, height))

    for transform in (lambda: vision_pixels(image, 336), lambda: drawn_pixels(image, 256, 1.125)):
        with pytest.raises(UserError, match=rf"{width} x {height} .* at most {MAX_ASPECT_RATIO} times"):
            transform()


def test_the_narrowest_picture_that_is_taken_costs_little_memory():
    program = (
        "import resource, torch; from PIL import Image\n"
        "from model.transforms import MAX_ASPECT_RATIO, drawn_pixels, vision_pixels\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for shape in ((MAX_ASPECT_RATIO, 1), (1, MAX_ASPECT_RATIO), (250 * MAX_ASPECT_RATIO, 250)):\n"
        "    vision_pixels(Image.new('RGB', shape), 336), drawn_pixels(Image.new('RGB', shape), 256, 1.125)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True
    )

    kibibytes = int(done.stdout)
    assert kibibytes < 128 * 1024


def test_a_picture_without_pixels_is_refused():
    with pytest.raises(UserError, match="0 x 10 pixels"):
        vision_pixels(Image.new("RGB", (0, 10)), 32)


def test_transparent_places_are_white_whatever_colour_lies_hidden_there():
    hidden = Image.new("RGBA", (8, 8), (255, 0, 0, 0))

    assert (drawn_pixels(hidden, 8, 1.0) == 1).all()


def test_sixteen_bits_of_grey_become_eight():
    ramp = np.arange(0, 65536, 1024, dtype=np.uint16).reshape(8, 8)

    made = picture((drawn_pixels(Image.fromarray(ramp), 8, 1.0) + 1) / 2)

    assert np.array_equal(np.asarray(made)[..., 0], ramp // 256)
