"""Figures beside what they must reach, as a table of text."""

from collections.abc import Mapping
from typing import Any

from training.evaluation.metrics import TARGETS
from training.registry.gates import LOWER_IS_BETTER, numbers


def table(metrics: Mapping[str, Any]) -> str:
    """A line for every figure that has a target; `*` marks one that is missed."""
    found = numbers(metrics)
    lines = [f"{'':22}{'reached':>9}{'must':>8}{'aim':>8}"]
    for name, (must, aim) in TARGETS.items():
        value = found.get(name)
        shown = "none" if value is None else f"{value:.3f}"
        lines.append(f"{name:22}{shown:>9}{must:>8}{aim:>8}{'' if _reaches(name, value, must) else ' *'}")
    return "\n".join(lines)


def _reaches(name: str, value: float | None, must: float) -> bool:
    if value is None:
        return False
    return value <= must if name in LOWER_IS_BETTER else value >= must
