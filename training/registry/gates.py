"""Decides whether a model may become champion, from figures alone: floors, and the best champion so far."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from model.errors import UserError

UNDERSTANDING = frozenset({"vqa", "pope", "text"})
DRAWING = frozenset({"draw", "draw_and_describe", "tokenizer", "image"})
LOWER_IS_BETTER = frozenset({"draw.frechet_ratio", "text.loss", "image.loss"})
# Sums of decimals such as 0.98 - 0.01 must not fail by a rounding error.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Gate:
    """One metric against what it must reach: its floor, and the best that any champion had, less the margin.

    Args:
        value: None where the figure is no number, which never passes.
        limit: The stricter of both; None where there is neither.
        best: The best champion's value; None without a champion or a margin.
    """

    name: str
    value: float | None
    limit: float | None
    best: float | None
    is_open: bool

    @property
    def short_by(self) -> float | None:
        """How much is missing; 0 for an open gate, None where nothing can be compared."""
        if self.is_open:
            return 0.0
        return None if self.limit is None or self.value is None else abs(self.limit - self.value)

    def __str__(self) -> str:
        if self.value is None:
            return f"{self.name}: failed: the figure is no number"
        if self.limit is None:
            if self.is_open:
                return f"{self.name}: passed: {self.value:.4f}, which has no limit yet"
            return f"{self.name}: failed: the champion has no figure to compare {self.value:.4f} with"
        verdict = "passed" if self.is_open else f"failed by {self.short_by:.4f}"
        was = "" if self.best is None else f" (best champion {self.best:.4f})"
        most = "at most" if self.name in LOWER_IS_BETTER else "at least"
        return f"{self.name}: {verdict}: {self.value:.4f}, must be {most} {self.limit:.4f}{was}"


@dataclass(frozen=True)
class Decision:
    """Every gate, in the order of the margins, then of the floors."""

    gates: tuple[Gate, ...]

    @property
    def is_yes(self) -> bool:
        return all(gate.is_open for gate in self.gates)

    @property
    def failed(self) -> tuple[Gate, ...]:
        return tuple(gate for gate in self.gates if not gate.is_open)


def decide(
    candidate: Mapping[str, Any],
    champions: Sequence[Mapping[str, Any]],
    margins: Mapping[str, Any],
    floors: Mapping[str, Any],
) -> Decision:
    """Hold every gated metric against its floor, and against the best champion so far less its margin.

    The margin counts from the best that any champion had, so that a line of champions cannot lose a little
    each time. All arguments have the shape of metrics/evaluate.json. A metric has a gate when it has a margin
    or a floor.

    Args:
        champions: Figures of all champions, the present one last; empty before the first, when only floors
            count.
    """
    scores, allowed, least = numbers(candidate), numbers(margins), numbers(floors)
    _check_margins(allowed)
    names = allowed | least
    if missing := [name for name in names if name not in scores]:
        raise UserError(f"the metrics have no {missing[0]}, for which there is a margin or a floor")
    known = [numbers(figures) for figures in champions]
    return Decision(
        tuple(_gate(name, scores[name], known, allowed.get(name), least.get(name)) for name in names)
    )


def numbers(nested: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Nested metrics under dotted names; what is not a number is left out."""
    flat: dict[str, float] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat |= numbers(value, f"{prefix}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            flat[f"{prefix}{key}"] = float(value)
    return flat


def reaches(name: str, value: float | None, limit: float) -> bool:
    """Whether a metric is at least its limit, or at most where lower is better; no value reaches nothing."""
    if value is None or math.isnan(value):
        return False
    return _signed(name, value) >= _signed(name, limit) - ROUNDING


def _signed(name: str, value: float) -> float:
    """The value such that higher is better."""
    return -value if name in LOWER_IS_BETTER else value


def _check_margins(margins: Mapping[str, float]) -> None:
    for name, margin in margins.items():
        if not (math.isfinite(margin) and margin >= 0):
            raise UserError(f"the margin of {name} must be a number of at least 0, got {margin}")
    groups = {name.partition(".")[0] for name in margins}
    for side, members in (("understanding", UNDERSTANDING), ("drawing", DRAWING)):
        if not groups & members:
            raise UserError(
                f"margins name no metric of {side} ({', '.join(sorted(members))}), got {sorted(margins)}"
            )


def _gate(
    name: str,
    value: float,
    champions: Sequence[Mapping[str, float]],
    margin: float | None,
    floor: float | None,
) -> Gate:
    finite = value if math.isfinite(value) else None
    limits = [] if floor is None else [floor]
    best = None
    if champions and margin is not None:
        figures = [champion[name] for champion in champions if math.isfinite(champion.get(name, math.nan))]
        if not math.isfinite(champions[-1].get(name, math.nan)):
            return Gate(name, finite, None, None, False)
        best = max(figures, key=lambda figure: _signed(name, figure))
        limits.append(best + margin if name in LOWER_IS_BETTER else best - margin)
    limit = max(limits, key=lambda bound: _signed(name, bound), default=None)
    is_open = finite is not None and (limit is None or reaches(name, finite, limit))
    return Gate(name, finite, limit, best, is_open)
