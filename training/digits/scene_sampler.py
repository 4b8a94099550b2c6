"""Random scenes of one split, with their images and the questions that can be asked about them."""

import io
from pathlib import Path

import numpy as np

from training.digits import instructions
from training.digits.instructions import POPE_SETTINGS, Turn
from training.digits.scans import load_scans
from training.digits.scenes import (
    BACKGROUNDS,
    COLORS,
    TEST_PAIRS,
    VALIDATION_PAIRS,
    Scene,
    render,
    split_scans,
)

NUM_POPULAR = 3


class SceneSampler:
    """Samples scenes from the scans of one split, and pairs of digit and colour that this split may show.

    Wrong digits for questions such as "Is there a three in the image?" are chosen as POPE does
    (arXiv:2305.10355): `random`, any other digit; `popular`, one of the most frequent digits of the training
    scans; `adversarial`, the digit whose mean training scan is nearest.

    Args:
        augment: How far digits are rotated, sheared and stretched, 0 to 1.
    """

    def __init__(self, data_dir: Path, split: str, seed: int, augment: float) -> None:
        self.scans, self.labels = load_scans(data_dir)
        splits = split_scans(self.labels)
        self.scan_indices, self.seed, self.augment = splits[split], seed, augment
        all_pairs = {(digit, color) for digit in range(10) for color in COLORS}
        allowed = {"train": all_pairs - TEST_PAIRS - VALIDATION_PAIRS, "validation": all_pairs - TEST_PAIRS}
        self.pairs = allowed.get(split, all_pairs)
        train_scans, train_labels = self.scans[splits["train"]], self.labels[splits["train"]]
        counts = np.bincount(train_labels, minlength=10)
        # One more than NUM_POPULAR, as the digit of the scene may be among them.
        self.popular_digits = [int(d) for d in np.argsort(-counts, kind="stable")[: NUM_POPULAR + 1]]
        means = np.stack([train_scans[train_labels == digit].mean(0).ravel() for digit in range(10)])
        distances = np.linalg.norm(means[:, None] - means[None], axis=-1) + np.eye(10) * 1e9
        self.nearest_digit = distances.argmin(1)

    def rng(self, kind: str, index: int) -> np.random.Generator:
        """The random generator of one record: another seed, kind or index gives another stream."""
        return np.random.default_rng([self.seed, *kind.encode(), index])

    def sample_scene(self, rng: np.random.Generator, scan: int | None = None) -> Scene:
        """A random scene, of a random scan if none is given."""
        scan = int(rng.choice(self.scan_indices)) if scan is None else scan
        digit = int(self.labels[scan])
        colors = [color for color in COLORS if (digit, color) in self.pairs]
        return Scene(digit, instructions.pick(colors, rng), instructions.pick(list(BACKGROUNDS), rng), scan)

    def render_png(self, scene: Scene, rng: np.random.Generator) -> bytes:
        """The image of a scene, as PNG."""
        buffer = io.BytesIO()
        render(self.scans[scene.scan], scene, rng, self.augment).save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()

    def sample_absent_digit(self, pope_setting: str, scene: Scene, rng: np.random.Generator) -> int:
        """A digit that is not in the scene, chosen as the POPE setting says."""
        if pope_setting == "adversarial":
            return int(self.nearest_digit[scene.digit])
        candidates = self.popular_digits if pope_setting == "popular" else range(10)
        return int(rng.choice([digit for digit in candidates if digit != scene.digit]))

    def sample_exists_turn(self, scene: Scene, rng: np.random.Generator) -> Turn:
        """A yes-or-no question, either answer equally likely; one in four is about the colour."""
        is_yes = rng.random() < 0.5
        if rng.random() < 0.25:
            others = [color for color in COLORS if color != scene.color]
            color = scene.color if is_yes else instructions.pick(others, rng)
            return instructions.color_exists_turn(color, scene)
        setting = instructions.pick(POPE_SETTINGS, rng)
        digit = scene.digit if is_yes else self.sample_absent_digit(setting, scene, rng)
        return instructions.digit_exists_turn(digit, scene)

    def sample_turns(self, scene: Scene, rng: np.random.Generator, count: int, num_exists: int) -> list[Turn]:
        """Several questions about one scene, of different families.

        Args:
            num_exists: How often yes-or-no questions are put among the five other families to choose from.
        """
        families = rng.permutation([*instructions.QUESTIONS, *["exists"] * num_exists])[:count]
        return [
            self.sample_exists_turn(scene, rng)
            if family == "exists"
            else instructions.question_turn(str(family), scene, rng)
            for family in families
        ]
