"""Learning-rate schedule: linear warm-up, then cosine decay to a share of the peak."""

import math
from collections.abc import Iterable
from typing import Any

from training.params import ScheduleParams


def learning_rate(step: int, peak: float, warmup: int, steps: int, end: float) -> float:
    """Rate of a step, counted from 0.

    Args:
        warmup: Steps of the linear warm-up.
        steps: Of the whole training.
        end: The rate after the last step, as a share of the peak.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(steps - warmup, 1)
    return peak * (end + (1 - end) * 0.5 * (1 + math.cos(math.pi * progress)))


def set_learning_rates(groups: Iterable[dict[str, Any]], step: int, params: ScheduleParams) -> float:
    """Set the rate of an optimizer's groups for a step, from the group's `peak`; the rate for `params.lr`."""
    for group in groups:
        group["lr"] = learning_rate(step, group["peak"], params.warmup, params.steps, params.end)
    return learning_rate(step, params.lr, params.warmup, params.steps, params.end)
