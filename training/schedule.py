"""The learning rate as a pure function of the step: linear warm-up, then cosine to nothing."""

import math


def learning_rate(step: int, peak: float, warmup: int, steps: int) -> float:
    """Rate for step number `step`, counted from 0; the last step still learns a little."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(steps - warmup, 1)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))
