"""Coloured scenes of real handwritten digits: palette, pairs kept for testing, splits of the scans,
rendering.
"""

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

# One colour of every digit is kept for the test, one of every second digit for tuning: of 60 pairs, 45 are
# trained.
UNSEEN_PAIRS = frozenset((digit, list(COLORS)[(digit * 5 + 1) % 6]) for digit in range(10))
TUNING_PAIRS = frozenset((digit, list(COLORS)[(digit * 5 + 4) % 6]) for digit in range(0, 10, 2))

TEST_SCANS, VALIDATION_SCANS, SPLIT_SEED = 360, 150, 8
COLOR_JITTER, JITTER_LIMIT = 0.012, 3
DIGIT_SIDES = (21, 29)
INK_FLOOR, INK_GAIN = 0.14, 1.5
MAX_ROTATION_DEGREES, MAX_SHEAR, MAX_STRETCH = 14.0, 0.2, 0.18


@dataclass(frozen=True)
class Scene:
    """What one picture shows: a digit, its colour, the background, and which scan was used."""

    digit: int
    color: str
    background: str
    scan: int

    @property
    def caption(self) -> str:
        """Such as `a red seven on a white background`, without a full stop."""
        return caption_of(self.color, DIGITS[self.digit], self.background)

    @property
    def pair(self) -> tuple[int, str]:
        """Digit and colour, the combination that may be kept for testing."""
        return self.digit, self.color


def caption_of(color: str, thing: str, background: str) -> str:
    """Such as `a red seven on a white background`, whatever the thing."""
    return f"{article(color)} {color} {thing} on {article(background)} {background} background"


def split_scans(labels: np.ndarray) -> dict[str, np.ndarray]:
    """Indices of the scans of each split; every split has its share of every digit, none share a scan."""
    order = np.random.default_rng(SPLIT_SEED).permutation(len(labels))
    # Dealing the scans of each digit out in turn keeps the digits in proportion.
    rank = np.empty(len(labels))
    for digit in range(10):
        members = order[labels[order] == digit]
        rank[members] = (np.arange(len(members)) + 0.5) / len(members)
    ordered = np.argsort(rank, kind="stable")
    test, validation = TEST_SCANS, TEST_SCANS + VALIDATION_SCANS
    parts = {"test": ordered[:test], "validation": ordered[test:validation], "train": ordered[validation:]}
    return {name: np.sort(part) for name, part in parts.items()}


def render(scan_88: np.ndarray, scene: Scene, rng: np.random.Generator, augment: float) -> Image.Image:
    """A 32 x 32 picture of one scan, ink 0 to 16; `augment` from 0 to 1 turns, shears and stretches the
    digit.
    """
    ink_HW = _placed(_ink(scan_88, rng, augment), rng)[..., None]
    front, back = (_jittered(color, rng) for color in (COLORS[scene.color], BACKGROUNDS[scene.background]))
    pixels_HW3 = ink_HW * front + (1 - ink_HW) * back
    return Image.fromarray(np.clip(pixels_HW3 + 0.5, 0, 255).astype(np.uint8))


def _jittered(color: tuple[int, int, int], rng: np.random.Generator) -> np.ndarray:
    noise = rng.normal(0, COLOR_JITTER, 3).clip(-JITTER_LIMIT * COLOR_JITTER, JITTER_LIMIT * COLOR_JITTER)
    return np.asarray(color) + 255 * noise


def _ink(scan_88: np.ndarray, rng: np.random.Generator, augment: float) -> np.ndarray:
    """Share of ink in each pixel of the digit's box, (H, W), from 0 to 1."""
    rows, columns = np.nonzero(scan_88.any(1))[0], np.nonzero(scan_88.any(0))[0]
    box = scan_88[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    side = int(rng.integers(DIGIT_SIDES[0], DIGIT_SIDES[1] + 1))
    stretch = 1 + augment * rng.uniform(-MAX_STRETCH, MAX_STRETCH)
    width = int(np.clip(round(side * box.shape[1] / box.shape[0] * stretch), 5, DIGIT_SIDES[1]))
    padded = np.pad(box * (255.0 / MAX_INK), 1).astype(np.uint8)
    scale = (width / box.shape[1], side / box.shape[0])
    size = (round(padded.shape[1] * scale[0]), round(padded.shape[0] * scale[1]))
    image = _turned(Image.fromarray(padded).resize(size, Image.Resampling.BICUBIC), rng, augment)
    ink_HW = np.clip((np.asarray(image) / 255.0 - INK_FLOOR) * INK_GAIN, 0, 1)
    return _trimmed(ink_HW)


def _turned(image: Image.Image, rng: np.random.Generator, augment: float) -> Image.Image:
    if augment == 0:
        return image
    angle = np.deg2rad(augment * rng.uniform(-MAX_ROTATION_DEGREES, MAX_ROTATION_DEGREES))
    shear = augment * rng.uniform(-MAX_SHEAR, MAX_SHEAR)
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([[cos, sin + shear], [-sin, cos]])
    center = np.array(image.size) / 2
    side = np.array([SIDE, SIDE]) / 2
    shift = center - turn @ side
    matrix = (turn[0, 0], turn[0, 1], shift[0], turn[1, 0], turn[1, 1], shift[1])
    return image.transform((SIDE, SIDE), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)


def _trimmed(ink_HW: np.ndarray) -> np.ndarray:
    rows, columns = np.nonzero(ink_HW.any(1))[0], np.nonzero(ink_HW.any(0))[0]
    return ink_HW[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1][:SIDE, :SIDE]


def _placed(ink_HW: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The digit somewhere on the canvas, wherever it fits."""
    canvas_HW = np.zeros((SIDE, SIDE))
    top, left = (int(rng.integers(0, SIDE - length + 1)) for length in ink_HW.shape)
    canvas_HW[top : top + ink_HW.shape[0], left : left + ink_HW.shape[1]] = ink_HW
    return canvas_HW
