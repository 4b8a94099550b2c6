"""Scenes: one handwritten digit in a colour on a background. Palette, splits, held-out pairs, rendering."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from training.data.class_prompts import article

# Shape legend: H W = height and width.

SIDE = 32
MAX_INK = 16
COLORS = {
    "red": (222, 28, 36),
    "green": (22, 150, 60),
    "blue": (38, 82, 228),
    "yellow": (246, 216, 22),
    "purple": (138, 40, 196),
    "orange": (255, 122, 8),
}
BACKGROUNDS = {
    "white": (248, 248, 248),
    "black": (14, 12, 16),
    "gray": (130, 130, 130),
    "pink": (255, 168, 192),
    "cyan": (120, 220, 230),
}
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

# Pairs of digit and colour that no training record has: one for each digit is held out for the test split,
# and one for each second digit for the validation split, so that 45 of 60 pairs are trained.
TEST_PAIRS = frozenset((digit, list(COLORS)[(digit * 5 + 1) % 6]) for digit in range(10))
VALIDATION_PAIRS = frozenset((digit, list(COLORS)[(digit * 5 + 4) % 6]) for digit in range(0, 10, 2))

NUM_TEST_SCANS, NUM_VALIDATION_SCANS, SPLIT_SEED = 360, 150, 8
# Standard deviation of a colour channel, as a share of its range, and where the noise is cut, in deviations.
COLOR_JITTER, JITTER_LIMIT = 0.012, 3
# Least and greatest height of a digit in pixels.
DIGIT_SIDES = (21, 29)
# Contrast of the enlarged scan: ink below the floor vanishes, the rest is amplified.
INK_FLOOR, INK_GAIN = 0.14, 1.5
# Scan of a scene that is only described, not rendered.
NO_SCAN = -1
MAX_ROTATION_DEGREES, MAX_SHEAR, MAX_STRETCH = 14.0, 0.2, 0.18


@dataclass(frozen=True)
class Scene:
    """What an image shows: a digit, its colour and the background; `scan` is an index, or NO_SCAN."""

    digit: int
    color: str
    background: str
    scan: int

    @property
    def caption(self) -> str:
        """Such as `a red seven on a white background`."""
        return caption_of(self.color, DIGITS[self.digit], self.background)

    @property
    def pair(self) -> tuple[int, str]:
        """Digit and colour, the combination that may be held out."""
        return self.digit, self.color


def caption_of(color: str, thing: str, background: str) -> str:
    """Such as `a red seven on a white background`, for any thing."""
    return f"{article(color)} {color} {thing} on {article(background)} {background} background"


def split_scans(labels: np.ndarray) -> dict[str, np.ndarray]:
    """Indices of the scans of each split, stratified by digit; splits share no scan. {split: (N,)}"""
    order = np.random.default_rng(SPLIT_SEED).permutation(len(labels))
    # Sorted by its relative position among the scans of its digit, any stretch has all digits in proportion.
    rank = np.empty(len(labels))
    for digit in range(10):
        members = order[labels[order] == digit]
        rank[members] = (np.arange(len(members)) + 0.5) / len(members)
    ordered = np.argsort(rank, kind="stable")
    test, validation = NUM_TEST_SCANS, NUM_TEST_SCANS + NUM_VALIDATION_SCANS
    parts = {"test": ordered[:test], "validation": ordered[test:validation], "train": ordered[validation:]}
    return {name: np.sort(part) for name, part in parts.items()}


def render(scan_88: np.ndarray, scene: Scene, rng: np.random.Generator, augment: float) -> Image.Image:
    """A 32 x 32 image of one scan (8 x 8, ink from 0 to 16) in the colours of a scene, at a random position.

    Args:
        augment: How far the digit is rotated, sheared and stretched, 0 to 1.
    """
    ink_HW1 = _randomly_positioned(_ink(scan_88, rng, augment), rng)[..., None]
    digit, background = (
        _jittered(color, rng) for color in (COLORS[scene.color], BACKGROUNDS[scene.background])
    )
    pixels_HW3 = ink_HW1 * digit + (1 - ink_HW1) * background
    return Image.fromarray(np.clip(pixels_HW3 + 0.5, 0, 255).astype(np.uint8))


def _jittered(color: tuple[int, int, int], rng: np.random.Generator) -> np.ndarray:
    noise = rng.normal(0, COLOR_JITTER, 3).clip(-JITTER_LIMIT * COLOR_JITTER, JITTER_LIMIT * COLOR_JITTER)
    return np.asarray(color) + 255 * noise


def _ink(scan_88: np.ndarray, rng: np.random.Generator, augment: float) -> np.ndarray:
    """The digit enlarged: ink of each pixel of its bounding box, 0 to 1, (H, W)."""
    box = _bounding_box(scan_88)
    side = int(rng.integers(DIGIT_SIDES[0], DIGIT_SIDES[1] + 1))
    stretch = 1 + augment * rng.uniform(-MAX_STRETCH, MAX_STRETCH)
    width = int(np.clip(round(side * box.shape[1] / box.shape[0] * stretch), 5, DIGIT_SIDES[1]))
    padded = np.pad(box * (255.0 / MAX_INK), 1).astype(np.uint8)
    scale = (width / box.shape[1], side / box.shape[0])
    size = (round(padded.shape[1] * scale[0]), round(padded.shape[0] * scale[1]))
    image = _rotated_and_sheared(Image.fromarray(padded).resize(size, Image.Resampling.BICUBIC), rng, augment)
    ink_HW = np.clip((np.asarray(image) / 255.0 - INK_FLOOR) * INK_GAIN, 0, 1)
    return _bounding_box(ink_HW)[:SIDE, :SIDE]


def _rotated_and_sheared(image: Image.Image, rng: np.random.Generator, augment: float) -> Image.Image:
    if augment == 0:
        return image
    angle = np.deg2rad(augment * rng.uniform(-MAX_ROTATION_DEGREES, MAX_ROTATION_DEGREES))
    shear = augment * rng.uniform(-MAX_SHEAR, MAX_SHEAR)
    cos, sin = np.cos(angle), np.sin(angle)
    rotation = np.array([[cos, sin + shear], [-sin, cos]])
    center = np.array(image.size) / 2
    side = np.array([SIDE, SIDE]) / 2
    shift = center - rotation @ side
    matrix = (rotation[0, 0], rotation[0, 1], shift[0], rotation[1, 0], rotation[1, 1], shift[1])
    return image.transform((SIDE, SIDE), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)


def _bounding_box(ink_HW: np.ndarray) -> np.ndarray:
    """The smallest part of an image that holds all its ink."""
    rows, columns = np.nonzero(ink_HW.any(1))[0], np.nonzero(ink_HW.any(0))[0]
    return ink_HW[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _randomly_positioned(ink_HW: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The digit on an empty canvas, anywhere that it fits, (32, 32)."""
    canvas_HW = np.zeros((SIDE, SIDE))
    top, left = (int(rng.integers(0, SIDE - length + 1)) for length in ink_HW.shape)
    canvas_HW[top : top + ink_HW.shape[0], left : left + ink_HW.shape[1]] = ink_HW
    return canvas_HW
