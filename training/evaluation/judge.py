"""A classifier that judges pictures: which digit, in which colour, on which background, or none at all.

Trained with scikit-learn on renders of the real training scans only; never sees a drawing or a test scan.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.neighbors import NearestNeighbors
from sklearn.neural_network import MLPClassifier
from sklearn.svm import SVC

from training.digits.scenes import BACKGROUNDS, COLORS, SIDE, Scene
from training.evaluation.real_pictures import RealPictures

# Shape legend: N = pictures, H W = height and width, C = side of a digit's crop, F = features.

RENDERS_PER_SCAN = 6
TRAINING_AUGMENT = 0.6
CROP_SIDE, CROP_CANVAS = 14, 16
FULL_INK_PIXELS = 24
NUM_FEATURES = 32

# Beyond these a picture is taken for none of a digit; distances in RGB units of 0 to 255.
MIN_CONTRAST = 60.0
MAX_RESIDUAL = 24.0
MAX_PALETTE_DISTANCE = 75.0
INK_SHARES = (0.04, 0.45)
# Distance of a shape from the nearest training crop. Real digits reach 3.9, speckles and scribbles begin at
# 4.1.
MAX_NEAREST_DISTANCE = 4.1


@dataclass(frozen=True)
class Verdict:
    """What a picture shows; None where it shows nothing that can be named."""

    digit: int | None
    color: str | None
    background: str | None

    def is_right(self, scene: Scene) -> bool:
        """Digit, colour and background are all as the scene says."""
        return (self.digit, self.color, self.background) == (scene.digit, scene.color, scene.background)


@dataclass(frozen=True)
class _Reading:
    """Features of one picture: its two colours, and the share of ink in each pixel of the digit's crop."""

    front: np.ndarray
    back: np.ndarray
    crop: np.ndarray
    is_flat: bool
    is_two_colored: bool


class Judge:
    """A support vector machine names the digit, the nearest palette entries name the colours.

    A shape unlike every training digit is refused. The last hidden layer of a small network, trained on the
    same crops, is the space of the Frechet distance.
    """

    def __init__(self, shapes: SVC, known: NearestNeighbors, network: MLPClassifier) -> None:
        self.shapes, self.known, self.network = shapes, known, network

    def judge(self, images: Sequence[Image.Image]) -> list[Verdict]:
        """What each picture shows; pictures of any size."""
        if not images:
            return []
        readings = [_read(image) for image in images]
        crops = _flattened(readings)
        digits = self.shapes.predict(crops)
        nearest = self.known.kneighbors(crops)[0][:, 0]
        return [
            _verdict(reading, int(digit) if distance < MAX_NEAREST_DISTANCE else None)
            for reading, digit, distance in zip(readings, digits, nearest, strict=True)
        ]

    def features(self, images: Sequence[Image.Image]) -> np.ndarray:
        """The network's last hidden layer for each picture, (N, F)."""
        hidden = _flattened([_read(image) for image in images])
        for weight, bias in zip(self.network.coefs_[:-1], self.network.intercepts_[:-1], strict=True):
            hidden = np.maximum(hidden @ weight + bias, 0)
        return hidden

    def accuracy(self, images: Sequence[Image.Image], scenes: Sequence[Scene]) -> dict[str, float]:
        """Share of pictures whose digit, colour and background are read as the scenes say, and all three."""
        return agreement(self.judge(images), scenes)


def agreement(verdicts: Sequence[Verdict], scenes: Sequence[Scene]) -> dict[str, float]:
    """Share of verdicts that name the scene's digit, colour, background, and all three."""
    pairs = list(zip(verdicts, scenes, strict=True))
    shares = {
        name: float(np.mean([getattr(verdict, name) == getattr(scene, name) for verdict, scene in pairs]))
        for name in ("digit", "color", "background")
    }
    return {**shares, "all_right": float(np.mean([verdict.is_right(scene) for verdict, scene in pairs]))}


def train_judge(data_dir: Path, seed: int = 0) -> Judge:
    """Train the judge, which takes seconds; the same seed gives the same judge."""
    images, scenes = RealPictures(data_dir, "train", TRAINING_AUGMENT).every(RENDERS_PER_SCAN, seed)
    crops = _flattened([_read(image) for image in images])
    digits = np.array([scene.digit for scene in scenes])
    shapes = SVC(kernel="rbf", C=5.0, gamma=0.05).fit(crops, digits)
    known = NearestNeighbors(n_neighbors=1).fit(crops)
    network = MLPClassifier((128, NUM_FEATURES), alpha=1e-2, n_iter_no_change=3, tol=1e-3, random_state=seed)
    return Judge(shapes, known, network.fit(crops, digits))


def _read(image: Image.Image) -> _Reading:
    pixels_HW3 = _pixels(image)
    border = np.concatenate([pixels_HW3[0], pixels_HW3[-1], pixels_HW3[1:-1, 0], pixels_HW3[1:-1, -1]])
    back = np.median(border, axis=0)
    distance_HW = np.linalg.norm(pixels_HW3 - back, axis=-1)
    farthest = np.argsort(distance_HW, axis=None, kind="stable")[-FULL_INK_PIXELS:]
    front = np.median(pixels_HW3.reshape(-1, 3)[farthest], axis=0)
    contrast = float(np.linalg.norm(front - back))
    if contrast < MIN_CONTRAST:
        blank = np.zeros((CROP_CANVAS, CROP_CANVAS))
        return _Reading(front, back, blank, float(distance_HW.mean()) < MAX_RESIDUAL, False)
    ink_HW = np.clip((pixels_HW3 - back) @ (front - back) / contrast**2, 0, 1)
    residual = np.linalg.norm(pixels_HW3 - back - ink_HW[..., None] * (front - back), axis=-1).mean()
    share = float((ink_HW > 0.5).mean())
    is_two_colored = residual < MAX_RESIDUAL and INK_SHARES[0] < share < INK_SHARES[1]
    return _Reading(front, back, _crop(ink_HW), False, bool(is_two_colored))


def _pixels(image: Image.Image) -> np.ndarray:
    if image.size != (SIDE, SIDE):
        image = image.resize((SIDE, SIDE), Image.Resampling.BOX)
    return np.asarray(image.convert("RGB"), dtype=np.float64)


def _crop(ink_HW: np.ndarray) -> np.ndarray:
    """The digit's bounding box, its longer side made the same for all, in the middle of a small canvas."""
    inside_HW = ink_HW > 0.3
    rows, columns = np.nonzero(inside_HW.any(1))[0], np.nonzero(inside_HW.any(0))[0]
    box = ink_HW[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = CROP_SIDE / max(box.shape)
    size = tuple(max(2, round(length * scale)) for length in box.shape[::-1])
    small = Image.fromarray((box * 255).astype(np.uint8)).resize(size, Image.Resampling.BOX)
    crop = np.zeros((CROP_CANVAS, CROP_CANVAS))
    top, left = (CROP_CANVAS - small.height) // 2, (CROP_CANVAS - small.width) // 2
    crop[top : top + small.height, left : left + small.width] = np.asarray(small) / 255.0
    return crop


def _flattened(readings: Sequence[_Reading]) -> np.ndarray:
    return np.stack([reading.crop.ravel() for reading in readings])


def _verdict(reading: _Reading, digit: int | None) -> Verdict:
    background = _nearest(reading.back, BACKGROUNDS)
    if not reading.is_two_colored or digit is None:
        return Verdict(None, None, background if reading.is_flat else None)
    return Verdict(digit, _nearest(reading.front, COLORS), background)


def _nearest(color: np.ndarray, palette: dict[str, tuple[int, int, int]]) -> str | None:
    name = min(palette, key=lambda entry: float(np.linalg.norm(color - palette[entry])))
    return name if np.linalg.norm(color - palette[name]) < MAX_PALETTE_DISTANCE else None
