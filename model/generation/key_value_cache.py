"""Keys and values of many sequences that grow at their own pace, one row each."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LlamaConfig

# Shape legend: R = rows stepped now, S = rows of the store, Y = layers, N = heads, T = new positions,
# K = positions kept, H = channels of a head.


class KeyValueCache:
    """Keys and values of S sequences, each from its position 0 on; rows are stepped in any combination.

    A row's unused room lies behind its last position, so that causality alone hides it: no padding is ever
    attended.
    """

    def __init__(self, config: LlamaConfig, like: Tensor) -> None:
        heads = (config.num_key_value_heads, config.head_dim)
        self.kept_Y2SKNH = like.new_zeros(config.num_hidden_layers, 2, 0, 0, *heads)

    def reserve(self, num_rows: int, num_positions: int) -> None:
        """Room for so many rows and positions at least; new room is zero."""
        kept = self.kept_Y2SKNH
        layers, two, rows, places, *heads = kept.shape
        if num_rows > rows or num_positions > places:
            shape = (layers, two, max(num_rows, rows), max(num_positions, places), *heads)
            self.kept_Y2SKNH = kept.new_zeros(shape)
            self.kept_Y2SKNH[:, :, :rows, :places] = kept

    def copy(self, source: int, targets: Sequence[int], num_positions: int) -> None:
        """The first positions of one row, for the other rows too."""
        kept = self.kept_Y2SKNH
        spots = torch.tensor(targets, dtype=torch.long, device=kept.device)
        kept[:, :, spots, :num_positions] = kept[:, :, source : source + 1, :num_positions]

    def step(self, rows: Sequence[int], lengths: Sequence[int], count: int) -> "CacheStep":
        """Rows to step now by `count` positions, each after the `lengths` that it has; there must be room."""
        return CacheStep(self, rows, lengths, count)


class CacheStep:
    """Where the new positions of one step go and what they may look at, worked out once for all layers.

    `positions_RT` are the new positions; `mask_R1TK` is added to attention scores. There is no mask where
    causality needs none: a single new position at the end of every row, or nothing before the new ones.
    """

    def __init__(self, store: KeyValueCache, rows: Sequence[int], lengths: Sequence[int], count: int) -> None:
        device = store.kept_Y2SKNH.device
        self.store, self.start, self.end = store, min(lengths), max(lengths) + count
        is_run = list(rows) == list(range(rows[0], rows[0] + len(rows)))
        # A run of rows is looked at where it lies; any other choice of rows is copied out.
        self.rows = slice(rows[0], rows[0] + len(rows)) if is_run else torch.tensor(rows, device=device)
        self.rows_R1 = torch.tensor(rows, device=device)[:, None]
        self.is_level = self.start == self.end - count
        steps_T = torch.arange(count, device=device)
        self.positions_RT = torch.tensor(lengths, device=device)[:, None] + steps_T
        self.is_causal = self.is_level and self.start == 0
        is_free = self.is_level and count == 1
        self.mask_R1TK = None if self.is_causal or is_free else self._mask(store.kept_Y2SKNH.dtype)

    def _mask(self, dtype: torch.dtype) -> Tensor:
        places_K = torch.arange(self.end, device=self.positions_RT.device)
        hidden_R1TK = (places_K > self.positions_RT[..., None])[:, None]
        return torch.zeros(hidden_R1TK.shape, dtype=dtype, device=places_K.device).masked_fill_(
            hidden_R1TK, float("-inf")
        )

    def keep(self, layer: int, keys_RTNH: Tensor, values_RTNH: Tensor) -> tuple[Tensor, Tensor]:
        """Write the new keys and values; all that these rows have, (R, K, N, H)."""
        kept = self.store.kept_Y2SKNH[layer]
        return self._write(kept[0], keys_RTNH), self._write(kept[1], values_RTNH)

    def _write(self, kept_SKNH: Tensor, new_RTNH: Tensor) -> Tensor:
        if self.is_level and isinstance(self.rows, slice):
            kept_SKNH[self.rows, self.start : self.end] = new_RTNH
        else:
            kept_SKNH[self.rows_R1, self.positions_RT] = new_RTNH
        return kept_SKNH[self.rows, : self.end]
