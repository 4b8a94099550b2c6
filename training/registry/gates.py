"""May this model take the champion's place? A pure decision over two sets of metrics; knows no registry."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from model.errors import UserError

UNDERSTANDING = frozenset({"vqa", "pope"})
DRAWING = frozenset({"draw", "draw_and_describe", "tokenizer"})
LOWER_IS_BETTER = frozenset({"draw.frechet_ratio"})


@dataclass(frozen=True)
class Gate:
    """One metric against the least it must reach (or the most it may be, where lower is better)."""

    name: str
    value: float
    limit: float | None
    champion: float | None
    is_open: bool

    @property
    def short_by(self) -> float:
        """How much is missing; 0 for an open gate, infinite where nothing can be compared."""
        if self.is_open:
            return 0.0
        if self.limit is None or math.isnan(self.value):
            return math.inf
        return abs(self.limit - self.value)

    def __str__(self) -> str:
        sign = "<=" if self.name in LOWER_IS_BETTER else ">="
        if self.limit is None:
            return f"{self.name}: the champion has no value to compare {self.value:.4f} with"
        was = "" if self.champion is None else f" (champion {self.champion:.4f})"
        verdict = "passed" if self.is_open else f"failed by {self.short_by:.4f}"
        return f"{self.name}: {verdict}: {self.value:.4f}, must be {sign} {self.limit:.4f}{was}"


@dataclass(frozen=True)
class Decision:
    """Every gate, in the order of the margins."""

    gates: tuple[Gate, ...]

    @property
    def is_yes(self) -> bool:
        return all(gate.is_open for gate in self.gates)

    @property
    def failed(self) -> tuple[Gate, ...]:
        return tuple(gate for gate in self.gates if not gate.is_open)


def decide(
    candidate: Mapping[str, Any],
    champion: Mapping[str, Any] | None,
    margins: Mapping[str, Any],
    floors: Mapping[str, Any] | None = None,
) -> Decision:
    """Open the way if no gated metric is below its floor or worse than the champion's by over its margin.

    All arguments are nested dictionaries of the shape of metrics/evaluate.json. A metric has a gate when it
    has a margin or a floor. Without a champion only floors count. What cannot be compared stays shut.
    """
    scores, allowed, least = numbers(candidate), numbers(margins), numbers(floors or {})
    _check_margins(allowed)
    reference = None if champion is None else numbers(champion)
    if missing := [name for name in (allowed | least) if name not in scores]:
        raise UserError(f"the metrics have no {missing[0]}, for which there is a margin or a floor")
    names = allowed | least
    gates = (_gate(name, scores[name], reference, allowed.get(name), least.get(name)) for name in names)
    return Decision(tuple(gates))


def numbers(nested: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Nested metrics under dotted names; what is not a number is left out."""
    flat: dict[str, float] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat |= numbers(value, f"{prefix}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            flat[f"{prefix}{key}"] = float(value)
    return flat


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
    name: str, value: float, reference: Mapping[str, float] | None, margin: float | None, floor: float | None
) -> Gate:
    sign = -1.0 if name in LOWER_IS_BETTER else 1.0
    limits = [] if floor is None else [sign * floor]
    was = None if reference is None or margin is None else reference.get(name)
    if was is not None and margin is not None:
        limits.append(sign * was - margin)
    is_unknown = reference is not None and margin is not None and (was is None or math.isnan(was))
    if is_unknown:
        return Gate(name, value, None, None, False)
    if not limits:
        return Gate(name, value, -sign * math.inf, None, not math.isnan(value))
    # Sums of decimals such as 0.98 - 0.01 must not fail by a rounding error.
    limit = max(limits)
    is_open = sign * value >= limit - 1e-9
    return Gate(name, value, sign * limit, was, is_open)
