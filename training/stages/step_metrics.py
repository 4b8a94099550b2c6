"""What a training step reports: losses, gradient, time, throughput, and whether its loss is a spike."""

import statistics
from collections import deque
from dataclasses import dataclass, field

from training.stages.stage_loss import Counted

# A loss is a spike above the mean of the last WINDOW ones by so many of their standard deviations.
SPIKE_DEVIATIONS = 6.0
WINDOW = 100
# Before there are so many, nothing is.
LEAST_LOSSES = 20


@dataclass(frozen=True)
class StepMetrics:
    """Metrics of one training step over all processes.

    Args:
        step: Counted from 0.
        losses: Mean cross-entropy in nats per token, of text, image and each image scale that there was.
        gradient_norm: Before clipping.
        num_tokens: Target tokens of text and images.
        num_skipped: Steps of this run so far that were skipped, as their gradient was not finite.
        norm_by_part: Gradient norm of each part of the model that learns, at steps where it is measured.
        seconds, data_seconds: Of the whole step on this process, and of waiting for its samples in it.
        compute_seconds: In which each process, by rank, computed before it waited for others; see
            `ComputeTime`. At steps where it is measured.
        count: What its batches held.
        validation: Mean losses of what is held out, at steps where they are measured.
        is_spike: Whether a loss is far above those of the steps before.
    """

    step: int
    learning_rate: float
    losses: dict[str, float]
    gradient_norm: float
    num_tokens: int
    num_skipped: int
    norm_by_part: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    data_seconds: float = 0.0
    compute_seconds: list[float] = field(default_factory=list)
    count: Counted | None = None
    validation: dict[str, float] = field(default_factory=dict)
    is_spike: bool = False


class SpikeDetector:
    """Says whether a loss stands out from those before."""

    def __init__(self) -> None:
        self._before: deque[float] = deque(maxlen=WINDOW)

    def is_spike(self, loss: float) -> bool:
        """Whether this one does; one that does is not counted among those before."""
        if len(self._before) >= LEAST_LOSSES:
            limit = statistics.mean(self._before) + SPIKE_DEVIATIONS * statistics.pstdev(self._before)
            # Not `loss > limit`, which is False for what is not a number.
            if not loss <= limit:
                return True
        self._before.append(loss)
        return False
