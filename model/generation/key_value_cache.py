"""Keys and values of many sequences of different lengths, one row each."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LlamaConfig

# Shape legend: R = rows of this step, S = rows of the cache, Y = layers, N = heads, T = new positions,
# K = positions, H = channels of a head.


class KeyValueCache:
    """Keys and values of S sequences, each from its position 0 on; a step appends to any of the rows.

    What lies in a row behind its last position is never attended, because it would be in the future: there is
    no padding and no attention mask for it.
    """

    def __init__(self, config: LlamaConfig, like: Tensor) -> None:
        heads = (config.num_key_value_heads, config.head_dim)
        self.keys_values_Y2SKNH = like.new_zeros(config.num_hidden_layers, 2, 0, 0, *heads)

    def reserve(self, num_rows: int, num_positions: int) -> None:
        """Grow to at least so many rows and positions."""
        old = self.keys_values_Y2SKNH
        layers, two, rows, positions, *heads = old.shape
        if num_rows > rows or num_positions > positions:
            shape = (layers, two, max(num_rows, rows), max(num_positions, positions), *heads)
            self.keys_values_Y2SKNH = old.new_zeros(shape)
            self.keys_values_Y2SKNH[:, :, :rows, :positions] = old

    def copy(self, source: int, targets: Sequence[int], num_positions: int) -> None:
        """Copy the first positions of one row to other rows."""
        cache = self.keys_values_Y2SKNH
        rows = torch.tensor(targets, dtype=torch.long, device=cache.device)
        cache[:, :, rows, :num_positions] = cache[:, :, source : source + 1, :num_positions]

    def step(self, rows: Sequence[int], lengths: Sequence[int], count: int) -> "CacheStep":
        """A step that appends `count` positions to rows which hold `lengths` so far; there must be room."""
        return CacheStep(self, rows, lengths, count)


class CacheStep:
    """Indices and mask of one step, computed once for all layers.

    `positions_RT` are the new positions; `mask_R1TK` is added to attention scores. It is None where it would
    hide nothing, for a single new position after rows of equal length, and where `is_causal` says the same,
    for rows that were empty.
    """

    def __init__(self, cache: KeyValueCache, rows: Sequence[int], lengths: Sequence[int], count: int) -> None:
        device = cache.keys_values_Y2SKNH.device
        self.cache, self.start, self.end = cache, min(lengths), max(lengths) + count
        is_contiguous = list(rows) == list(range(rows[0], rows[0] + len(rows)))
        # Contiguous rows are read as a view; others are copied.
        self.rows = (
            slice(rows[0], rows[0] + len(rows)) if is_contiguous else torch.tensor(rows, device=device)
        )
        self.rows_R1 = torch.tensor(rows, device=device)[:, None]
        self.has_equal_lengths = self.start == self.end - count
        offsets_T = torch.arange(count, device=device)
        self.positions_RT = torch.tensor(lengths, device=device)[:, None] + offsets_T
        self.is_causal = self.has_equal_lengths and self.start == 0
        hides_nothing = self.has_equal_lengths and count == 1
        needs_mask = not (self.is_causal or hides_nothing)
        self.mask_R1TK = self._mask(cache.keys_values_Y2SKNH.dtype) if needs_mask else None

    def _mask(self, dtype: torch.dtype) -> Tensor:
        positions_K = torch.arange(self.end, device=self.positions_RT.device)
        is_hidden_R1TK = (positions_K > self.positions_RT[..., None])[:, None]
        mask_R1TK = torch.zeros(is_hidden_R1TK.shape, dtype=dtype, device=positions_K.device)
        return mask_R1TK.masked_fill_(is_hidden_R1TK, float("-inf"))

    def update(self, layer: int, keys_RTNH: Tensor, values_RTNH: Tensor) -> tuple[Tensor, Tensor]:
        """Append the new keys and values of a layer; all keys and values of these rows, (R, K, N, H)."""
        keys_SKNH, values_SKNH = self.cache.keys_values_Y2SKNH[layer]
        return self._append(keys_SKNH, keys_RTNH), self._append(values_SKNH, values_RTNH)

    def _append(self, cache_SKNH: Tensor, new_RTNH: Tensor) -> Tensor:
        if self.has_equal_lengths and isinstance(self.rows, slice):
            cache_SKNH[self.rows, self.start : self.end] = new_RTNH
        else:
            cache_SKNH[self.rows_R1, self.positions_RT] = new_RTNH
        return cache_SKNH[self.rows, : self.end]
