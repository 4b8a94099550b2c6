"""Stop strings: where a text ends because a caller's stop string begins there."""

from collections.abc import Sequence


def find_stop(text: str, stops: Sequence[str]) -> int | None:
    """Where the first stop string begins, or None."""
    return min((place for stop in stops if (place := text.find(stop)) >= 0), default=None)


def settled_length(text: str, stops: Sequence[str]) -> int:
    """How much of a growing text can no longer be the beginning of a stop string."""
    longest = max((len(stop) for stop in stops), default=1)
    for start in range(max(0, len(text) - longest + 1), len(text)):
        if any(stop.startswith(text[start:]) for stop in stops):
            return start
    return len(text)
