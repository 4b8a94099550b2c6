"""Figures beside what they must reach and what they aim at, as a table of text."""

from collections.abc import Mapping
from typing import Any

from training.evaluation.metrics import AIMS
from training.registry.gates import LOWER_IS_BETTER, numbers, reaches


def table(metrics: Mapping[str, Any], floors: Mapping[str, Any]) -> str:
    """A line for every figure that has a floor or an aim, and for losses; `*` marks one below its floor.

    Args:
        floors: What figures must reach, nested like the metrics.
    """
    found, musts = numbers(metrics), numbers(floors)
    lines = [f"{'':22}{'reached':>9}{'must':>8}{'aim':>8}"]
    losses = dict.fromkeys(sorted(LOWER_IS_BETTER & found.keys()))
    for name in [name for name in AIMS | musts | losses if name in found or name in musts]:
        value, must, aim = found.get(name), musts.get(name), AIMS.get(name)
        shown = "none" if value is None else f"{value:.3f}"
        mark = " *" if must is not None and not reaches(name, value, must) else ""
        lines.append(f"{name:22}{shown:>9}{_or_dash(must):>8}{_or_dash(aim):>8}{mark}")
    return "\n".join(lines)


def _or_dash(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"
