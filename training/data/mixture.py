"""Several datasets in one endless order that is a pure function of seed and sample number.

No state: a run that starts again needs to know only how many samples were consumed. Every sample of a dataset
is drawn once before any is drawn twice.
"""

import functools
import hashlib
import math
from collections.abc import Sequence

import numpy as np

from model.errors import UserError
from training.data.samples import Sample

# Within a block every dataset has an exact quota, so that its draws before any sample number can be computed.
# Weights hold to one in this many.
BLOCK = 1 << 16


class Mixture:
    """Datasets drawn by weight.

    Args:
        parts: Pairs of dataset and weight; weights need not add up to one, zero leaves a dataset out.
        seed: Decides the order, together with the sample number alone.
    """

    def __init__(self, parts: Sequence[tuple[Sequence[Sample], float]], seed: int) -> None:
        weights = [float(weight) for _, weight in parts]
        for index, weight in enumerate(weights):
            if not (math.isfinite(weight) and weight >= 0):
                raise UserError(f"mixture[{index}]: weight must be finite and not negative, got {weight}")
            if weight and not len(parts[index][0]):
                raise UserError(f"mixture[{index}]: the dataset is empty, its weight is {weight}")
        if not any(weights):
            raise UserError(f"mixture: at least one weight must be positive, got {weights}")
        self.datasets = [dataset for dataset, _ in parts]
        self.seed = seed
        self.quotas = _quotas(weights)

    def sample_at(self, n: int) -> Sample:
        """The n-th sample of the endless order, counted from 0."""
        part, index = self.location_at(n)
        return self.datasets[part][index]

    def location_at(self, n: int) -> tuple[int, int]:
        """Where the n-th sample of the endless order lies: which dataset, and which record of it."""
        if n < 0:
            raise UserError(f"n must not be negative, got {n}")
        block, place = divmod(n, BLOCK)
        choices, ranks = _schedule(self.seed, block, self.quotas)
        part = int(choices[place])
        size = len(self.datasets[part])
        epoch, position = divmod(block * self.quotas[part] + int(ranks[place]), size)
        return part, int(_order(self.seed, part, epoch, size)[position])


def _quotas(weights: Sequence[float]) -> tuple[int, ...]:
    """Draws of every dataset in a block, at least one where the weight is positive; they add up to BLOCK."""
    total = sum(weights)
    exact = [weight / total * BLOCK for weight in weights]
    quotas = [math.floor(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda part: quotas[part] - exact[part])
    for part in by_remainder[: BLOCK - sum(quotas)]:
        quotas[part] += 1
    for part in [part for part, weight in enumerate(weights) if weight > 0 and not quotas[part]]:
        quotas[part] = 1
        quotas[quotas.index(max(quotas))] -= 1
    return tuple(quotas)


# The caches of the two functions below save time; they hold no state, the functions are pure.


@functools.lru_cache(maxsize=4)
def _schedule(seed: int, block: int, quotas: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """For every place of a block: whose turn it is, and how often it was its turn earlier in the block."""
    deck = np.repeat(np.arange(len(quotas)), quotas)
    choices = deck[_shuffled(f"{seed}/block/{block}", len(deck))]
    ranks = np.empty(len(deck), dtype=np.int64)
    for part, quota in enumerate(quotas):
        ranks[choices == part] = np.arange(quota)
    return choices, ranks


@functools.lru_cache(maxsize=256)
def _order(seed: int, part: int, epoch: int, size: int) -> np.ndarray:
    """The order of one dataset's samples in one epoch."""
    return _shuffled(f"{seed}/part/{part}/epoch/{epoch}", size)


def _shuffled(key: str, size: int) -> np.ndarray:
    """A permutation that depends on the key alone.

    Sorts the raw output of a counter-based generator: NumPy promises to keep that stream, but not the one of
    `Generator.permutation`.
    """
    philox = np.random.Philox(key=int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "little"))
    return np.argsort(philox.random_raw(size), kind="stable").astype(np.uint32)
