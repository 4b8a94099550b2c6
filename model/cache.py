"""Keys and values of many sequences that grow at their own pace, one row each."""

import torch
from torch import Tensor

# Shape legend: R = rows stepped now, S = rows of the store, N = heads, T = new positions, K = positions kept,
# H = channels of a head.


class SequenceStore:
    """Keys and values of S sequences, each from its position 0 on; rows are stepped in any combination.

    A row's unused room lies behind its last position, so the causal mask alone hides it: no padding is ever
    attended.
    """

    def __init__(self, num_layers: int) -> None:
        self.keys: list[Tensor | None] = [None] * num_layers
        self.values: list[Tensor | None] = [None] * num_layers

    def view(self, rows: Tensor, positions_RT: Tensor, room: int) -> "StoreView":
        """The rows to step now, where their new positions go, and how many positions the store must hold."""
        return StoreView(self, rows, positions_RT, room)


class StoreView:
    """What transformers' attention layers see as their cache."""

    is_compileable = False

    def __init__(self, store: SequenceStore, rows: Tensor, positions_RT: Tensor, room: int) -> None:
        self.store, self.rows, self.positions_RT, self.room = store, rows, positions_RT, room
        self.num_rows, self.end = int(rows.max()) + 1, int(positions_RT.max()) + 1
        self.in_order = bool((rows.diff() == 1).all())

    def update(self, keys_RNTH: Tensor, values_RNTH: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Keep the new keys and values and hand out all that these rows have, (R, N, K, H)."""
        kept_keys = self._write(self.store.keys, keys_RNTH, layer)
        kept_values = self._write(self.store.values, values_RNTH, layer)
        return kept_keys, kept_values

    def _write(self, layers: list[Tensor | None], new_RNTH: Tensor, layer: int) -> Tensor:
        kept_SKNH = layers[layer] = self._grown(layers[layer], new_RNTH)
        kept_SKNH[self.rows[:, None], self.positions_RT] = new_RNTH.transpose(1, 2)
        # All rows in order need no copy.
        is_everything = self.in_order and len(self.rows) == len(kept_SKNH)
        shown_RKNH = kept_SKNH[:, : self.end] if is_everything else kept_SKNH[self.rows, : self.end]
        return shown_RKNH.transpose(1, 2)

    def _grown(self, kept_SKNH: Tensor | None, new_RNTH: Tensor) -> Tensor:
        """The store with room for these rows and positions; new room is zero."""
        num_heads, width = new_RNTH.shape[1], new_RNTH.shape[3]
        num_rows, num_places = self.num_rows, max(self.room, self.end)
        if kept_SKNH is None:
            return new_RNTH.new_zeros(num_rows, num_places, num_heads, width)
        if num_rows <= kept_SKNH.shape[0] and num_places <= kept_SKNH.shape[1]:
            return kept_SKNH
        shape = (max(num_rows, kept_SKNH.shape[0]), max(num_places, kept_SKNH.shape[1]), num_heads, width)
        grown_SKNH = new_RNTH.new_zeros(shape)
        grown_SKNH[: kept_SKNH.shape[0], : kept_SKNH.shape[1]] = kept_SKNH
        return grown_SKNH


def step_mask(positions_RT: Tensor) -> Tensor:
    """True where a new position may look: at itself and everything before, (R, 1, T, K)."""
    places_K = torch.arange(int(positions_RT.max()) + 1, device=positions_RT.device)
    return (places_K <= positions_RT[..., None])[:, None]
