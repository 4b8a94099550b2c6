"""Permutations that depend on a key alone, whatever the version of NumPy."""

import hashlib

import numpy as np


def permutation(key: str, size: int) -> np.ndarray:
    """Numbers from 0 to `size`, shuffled, of 32 bits.

    Sorts the raw output of a counter-based generator: NumPy promises to keep that stream, but not the one of
    `Generator.permutation`.
    """
    philox = np.random.Philox(key=int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "little"))
    return np.argsort(philox.random_raw(size), kind="stable").astype(np.uint32)
