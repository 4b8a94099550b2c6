"""Sampling order over several datasets: endless, weighted, and a pure function of seed and sample number.

There is no state to save: a resumed run needs only the number of samples it has consumed. Each dataset is
shuffled anew every epoch, and all of its samples come once before any comes twice.
"""

import functools
import math
from collections.abc import Sequence

import numpy as np

from model.errors import UserError
from training.data.datasets import as_dataset
from training.data.permutations import permutation
from training.data.samples import Sample

# The order is cut into blocks of this many samples, in which every dataset has an exact quota. So the number
# of its earlier samples is known for any position, without walking there. Weights hold to one in BLOCK.
BLOCK = 1 << 16


class Mixture:
    """Datasets and the order in which their samples are drawn.

    Args:
        parts: Pairs of dataset and weight; weights need not add up to one, zero leaves a dataset out.
        seed: Of the order.
        held_out: Samples of the same datasets that are never trained on.

    Raises:
        UserError: a weight is negative or not finite, all are zero, or a dataset with a weight is empty.
    """

    def __init__(
        self,
        parts: Sequence[tuple[Sequence[Sample], float]],
        seed: int,
        held_out: "Mixture | None" = None,
    ) -> None:
        weights = [float(weight) for _, weight in parts]
        for index, weight in enumerate(weights):
            if not (math.isfinite(weight) and weight >= 0):
                raise UserError(f"mixture[{index}]: weight must be finite and not negative, got {weight}")
            if weight and not len(parts[index][0]):
                raise UserError(f"mixture[{index}]: the dataset is empty, its weight is {weight}")
        if not any(weights):
            raise UserError(f"mixture: at least one weight must be positive, got {weights}")
        self.datasets = [as_dataset(samples) for samples, _ in parts]
        self.seed, self.held_out = seed, held_out
        self.quotas = _quotas(weights)

    def locate(self, n: int) -> tuple[int, int]:
        """Index of the dataset, and of the sample in it, that sample number `n` of the order is, from 0."""
        if n < 0:
            raise UserError(f"n must not be negative, got {n}")
        block, position = divmod(n, BLOCK)
        choices, ranks = _block_schedule(self.seed, block, self.quotas)
        dataset = int(choices[position])
        size = len(self.datasets[dataset])
        epoch, position_in_epoch = divmod(block * self.quotas[dataset] + int(ranks[position]), size)
        return dataset, int(_epoch_order(self.seed, dataset, epoch, size)[position_in_epoch])


def _quotas(weights: Sequence[float]) -> tuple[int, ...]:
    """Samples of every dataset in a block, at least one for a positive weight; they add up to BLOCK."""
    total = sum(weights)
    exact = [weight / total * BLOCK for weight in weights]
    quotas = [math.floor(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda index: quotas[index] - exact[index])
    for index in by_remainder[: BLOCK - sum(quotas)]:
        quotas[index] += 1
    for index in [index for index, weight in enumerate(weights) if weight > 0 and not quotas[index]]:
        quotas[index] = 1
        quotas[quotas.index(max(quotas))] -= 1
    return tuple(quotas)


# The two functions below are pure; their caches only save time.


@functools.lru_cache(maxsize=4)
def _block_schedule(seed: int, block: int, quotas: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """For every position of a block: the dataset, and how many samples of it come earlier in the block."""
    unshuffled = np.repeat(np.arange(len(quotas)), quotas)
    choices = unshuffled[permutation(f"{seed}/block/{block}", len(unshuffled))]
    ranks = np.empty(len(choices), dtype=np.int64)
    for index, quota in enumerate(quotas):
        ranks[choices == index] = np.arange(quota)
    return choices, ranks


@functools.lru_cache(maxsize=256)
def _epoch_order(seed: int, dataset: int, epoch: int, size: int) -> np.ndarray:
    return permutation(f"{seed}/part/{dataset}/epoch/{epoch}", size)
