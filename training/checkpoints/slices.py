"""Which elements of which parameters a process owns: states of the optimizer as flat tensors, and slices in
them.

ZeRO keeps weights and moments of several parameters in one flat tensor on each process, data parallel keeps
each parameter by itself. A list of slices describes both, so that checkpoints are read by any engine and any
number of processes.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor


class Slice(NamedTuple):
    """Elements of one parameter in a flat tensor.

    Args:
        name: Of the parameter, whose elements are counted in row-major order.
        first: The first of its elements here.
        count: How many there are.
        flat: Number of the flat tensor.
        start: Where they begin in it.
    """

    name: str
    first: int
    count: int
    flat: int
    start: int


# The flat tensors of each kind of state, `weight` in float32, `exp_avg` and so on, all in the same layout.
# None where the optimizer keeps no such state for a tensor.
Flats = Mapping[str, Sequence[Tensor | None]]


def views(slices: Sequence[Slice], flats: Flats) -> Iterator[tuple[str, Slice, Tensor]]:
    """(kind, slice, its elements), without a copy."""
    for kind, tensors in flats.items():
        for part in slices:
            if (flat := tensors[part.flat]) is not None:
                yield kind, part, flat[part.start : part.start + part.count]


def share_of(slices: Sequence[Slice], rank: int, world_size: int) -> list[Slice]:
    """The part that one of several processes writes where each of them owns everything."""
    mine = []
    for part in slices:
        size = -(-part.count // world_size)
        begin = min(rank * size, part.count)
        count = min(size, part.count - begin)
        if count:
            mine.append(part._replace(first=part.first + begin, count=count, start=part.start + begin))
    return mine
