"""The learning rate as a pure function of the step: linear warm-up, then cosine to a share of the peak."""

import math


def learning_rate(step: int, peak: float, warmup: int, steps: int, end: float) -> float:
    """Rate for step number `step`, counted from 0; it falls to `end` times the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(steps - warmup, 1)
    return peak * (end + (1 - end) * 0.5 * (1 + math.cos(math.pi * progress)))
