"""Scenes of one split of the scans, with the questions that can be asked about them."""

import io
from pathlib import Path

import numpy as np

from training.digits import instructions
from training.digits.instructions import POPE_SETTINGS, Turn
from training.digits.scans import load_scans
from training.digits.scenes import BACKGROUNDS, COLORS, TUNING_PAIRS, UNSEEN_PAIRS, Scene, render, split_scans

NUM_POPULAR = 3


class SceneRenderer:
    """Renders scenes of one split; every record has a random stream of its own.

    Negatives of is-there-a-digit questions, after POPE: `random` any other digit; `popular` one of the most
    frequent digits of the training scans; `adversarial` the digit whose average training scan looks most
    alike.
    """

    def __init__(self, data_dir: Path, split: str, seed: int, augment: float) -> None:
        self.scans, self.labels = load_scans(data_dir)
        splits = split_scans(self.labels)
        self.members, self.seed, self.augment = splits[split], seed, augment
        all_pairs = {(digit, color) for digit in range(10) for color in COLORS}
        allowed = {"train": all_pairs - UNSEEN_PAIRS - TUNING_PAIRS, "validation": all_pairs - UNSEEN_PAIRS}
        self.pairs = allowed.get(split, all_pairs)
        train = self.labels[splits["train"]]
        counts = np.bincount(train, minlength=10)
        self.popular = [int(digit) for digit in np.argsort(-counts, kind="stable")[: NUM_POPULAR + 1]]
        means = np.stack([self.scans[splits["train"]][train == digit].mean(0).ravel() for digit in range(10)])
        distances = np.linalg.norm(means[:, None] - means[None], axis=-1) + np.eye(10) * 1e9
        self.alike = distances.argmin(1)

    def rng(self, kind: str, index: int) -> np.random.Generator:
        """The random stream of one record."""
        return np.random.default_rng([self.seed, *kind.encode(), index])

    def scene(self, rng: np.random.Generator, scan: int | None = None) -> Scene:
        """A random scene of this split, of a given scan if one is named."""
        scan = int(rng.choice(self.members)) if scan is None else scan
        digit = int(self.labels[scan])
        colors = [color for color in COLORS if (digit, color) in self.pairs]
        return Scene(digit, instructions.pick(colors, rng), instructions.pick(list(BACKGROUNDS), rng), scan)

    def png(self, scene: Scene, rng: np.random.Generator) -> bytes:
        """The scene as PNG bytes."""
        buffer = io.BytesIO()
        render(self.scans[scene.scan], scene, rng, self.augment).save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()

    def absent_digit(self, setting: str, scene: Scene, rng: np.random.Generator) -> int:
        """A digit that is not in the scene, chosen as the POPE setting says."""
        if setting == "adversarial":
            return int(self.alike[scene.digit])
        pool = self.popular if setting == "popular" else range(10)
        return int(rng.choice([digit for digit in pool if digit != scene.digit]))

    def exists(self, scene: Scene, rng: np.random.Generator) -> Turn:
        """Is there ...? Yes and no are equally likely; sometimes the colour is asked for."""
        is_yes = rng.random() < 0.5
        if rng.random() < 0.25:
            others = [color for color in COLORS if color != scene.color]
            color = scene.color if is_yes else instructions.pick(others, rng)
            return instructions.ask_color_exists(color, scene)
        setting = instructions.pick(POPE_SETTINGS, rng)
        digit = scene.digit if is_yes else self.absent_digit(setting, scene, rng)
        return instructions.ask_digit_exists(digit, scene)

    def turns(self, scene: Scene, rng: np.random.Generator, count: int, num_exists: int) -> list[Turn]:
        """Several questions about one scene."""
        families = rng.permutation([*instructions.QUESTIONS, *["exists"] * num_exists])[:count]
        return [
            self.exists(scene, rng) if family == "exists" else instructions.ask(str(family), scene, rng)
            for family in families
        ]
