"""Which samples share a row: longest first, each into the fullest row where it fits."""

from bisect import bisect_left, insort
from collections.abc import Sequence


def pack(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Rows of positions in `lengths`, none longer than `size` together, the fullest first.

    Depends on the lengths alone.
    """
    assert max(lengths, default=0) <= size
    rows: list[list[int]] = []
    # Space left and number of each row, in order.
    open_rows: list[tuple[int, int]] = []
    for position in sorted(range(len(lengths)), key=lambda position: (-lengths[position], position)):
        length = lengths[position]
        found = bisect_left(open_rows, (length, -1))
        if found == len(open_rows):
            rows.append([])
            space, row = size, len(rows) - 1
        else:
            space, row = open_rows.pop(found)
        rows[row].append(position)
        insort(open_rows, (space - length, row))
    filled = {row: size - space for space, row in open_rows}
    order = sorted(range(len(rows)), key=lambda row: (-filled[row], row))
    return [rows[row] for row in order]


def share_of_rank(rows: Sequence[list[int]], rank: int, world_size: int) -> list[list[int]]:
    """The rows of one process; as many for each, the last of some may be empty."""
    share = list(rows[rank::world_size])
    return share + [[]] * (-(-len(rows) // world_size) - len(share))
