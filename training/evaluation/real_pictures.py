"""Renders of real scans: what the judge is trained on, and what drawings are compared with."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from model.errors import UserError
from training.digits.scans import load_scans
from training.digits.scenes import BACKGROUNDS, COLORS, Scene, render, split_scans


class RealPictures:
    """Renders the scans of one split; `augment` turns, shears and stretches the digits, from 0 to 1."""

    def __init__(self, data_dir: Path, split: str, augment: float = 0.0) -> None:
        self.scans, self.labels = load_scans(data_dir)
        splits = split_scans(self.labels)
        if split not in splits:
            raise UserError(f"split must be one of {sorted(splits)}, got {split!r}")
        self.members, self.augment = splits[split], augment

    def every(self, times: int, seed: int) -> tuple[list[Image.Image], list[Scene]]:
        """Every scan so many times, each time in a random colour on a random background."""
        rng = np.random.default_rng(seed)
        colors, backgrounds = list(COLORS), list(BACKGROUNDS)
        scenes = [
            Scene(int(self.labels[scan]), str(rng.choice(colors)), str(rng.choice(backgrounds)), int(scan))
            for scan in np.repeat(self.members, times)
        ]
        return [render(self.scans[scene.scan], scene, rng, self.augment) for scene in scenes], scenes

    def like(self, scenes: Sequence[Scene], seed: int) -> list[Image.Image]:
        """Pictures of what these scenes ask for, each from a random scan of its digit."""
        rng = np.random.default_rng(seed)
        by_digit = [self.members[self.labels[self.members] == digit] for digit in range(10)]
        return [
            render(self.scans[rng.choice(by_digit[scene.digit])], scene, rng, self.augment)
            for scene in scenes
        ]
