"""Frechet distance between two sets of pictures, and between two sets of real ones as its floor.

The distance of arXiv:1706.08500, in the features of our own judge: two Gaussians are compared by mean and
covariance.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from model.errors import UserError
from training.digits.scenes import Scene
from training.evaluation.judge import Judge
from training.evaluation.real_pictures import RealPictures

# Shape legend: N = pictures, F = features.

# Real pictures are rendered anew so many times, and distances averaged: one rendering alone moves them by a
# quarter.
NUM_RENDERINGS = 4


def distance_to_real(
    judge: Judge, drawings: Sequence[Image.Image], scenes: Sequence[Scene], data_dir: Path, split: str
) -> dict[str, float]:
    """How far drawings are from real pictures of the same scenes from a split's scans.

    The floor is the distance of as many real pictures from training scans, and the ratio is of the two.
    """
    drawn_NF = judge.features(drawings)
    held_out, train = RealPictures(data_dir, split), RealPictures(data_dir, "train")
    distances, floors = [], []
    for seed in range(NUM_RENDERINGS):
        real_NF = judge.features(held_out.like(scenes, seed))
        distances.append(frechet_distance(drawn_NF, real_NF))
        floors.append(frechet_distance(judge.features(train.like(scenes, seed)), real_NF))
    distance, floor = float(np.mean(distances)), float(np.mean(floors))
    return {"frechet": distance, "frechet_floor": floor, "frechet_ratio": distance / floor}


def frechet_distance(first_NF: np.ndarray, second_NF: np.ndarray) -> float:
    """Squared Frechet distance of the Gaussians that fit two sets of features; needs two rows of each."""
    for name, features in (("first", first_NF), ("second", second_NF)):
        if features.ndim != 2 or len(features) < 2 or not np.isfinite(features).all():
            raise UserError(f"{name}: need at least 2 rows of finite features, got shape {features.shape}")
    mean = first_NF.mean(0) - second_NF.mean(0)
    first_FF, second_FF = np.cov(first_NF, rowvar=False), np.cov(second_NF, rowvar=False)
    traces = np.trace(first_FF) + np.trace(second_FF) - 2 * _trace_of_root(first_FF, second_FF)
    return max(0.0, float(mean @ mean + traces))


def _trace_of_root(first_FF: np.ndarray, second_FF: np.ndarray) -> float:
    """Trace of (A B) ** 0.5, from the symmetric A ** 0.5 B A ** 0.5, whose eigenvalues are the same."""
    values, vectors = np.linalg.eigh(first_FF)
    root_FF = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    return float(np.sqrt(np.linalg.eigvalsh(root_FF @ second_FF @ root_FF).clip(min=0)).sum())
