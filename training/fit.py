"""The short loop that backbones share: AdamW under a schedule, clipped, in bfloat16 where it helps,
averaged.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from training.averages import WeightAverage
from training.params import ScheduleParams
from training.schedule import learning_rate

CLIP_NORM = 1.0
BETAS = (0.9, 0.95)
WEIGHT_DECAY = 0.05

Report = Callable[[int, dict[str, float]], None]


def decay_groups(parameters: Sequence[nn.Parameter], weight_decay: float) -> list[dict[str, object]]:
    """Optimizer groups: matrices decay, vectors (biases, norms, scales) do not."""
    matrices = [p for p in parameters if p.squeeze().dim() > 1]
    vectors = [p for p in parameters if p.squeeze().dim() <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def fit(
    parameters: Sequence[nn.Parameter],
    params: ScheduleParams,
    seed: int,
    losses_at: Callable[[int], dict[str, Tensor]],
    report: Report,
) -> WeightAverage:
    """Minimise the sum of the losses that `losses_at(step)` gives; the average of the weights at the end.

    Every step seeds its own randomness, so a run is the same run whenever it is repeated.
    """
    optimizer = torch.optim.AdamW(decay_groups(parameters, WEIGHT_DECAY), lr=params.lr, betas=BETAS)
    average = WeightAverage(parameters, params.ema)
    for step in range(params.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, params.lr, params.warmup, params.steps)
        torch.manual_seed(seed * 1_000_003 + step)
        with torch.autocast("cpu", torch.bfloat16):
            losses = losses_at(step)
        optimizer.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
        optimizer.step()
        average.update(step + 1)
        report(step, {name: float(loss.detach()) for name, loss in losses.items()})
    return average
