"""The short loop that backbones share: steps under a schedule, clipped, averaged, kept as it goes."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from model.errors import UserError
from training.errors import Stopped
from training.optimization.schedule import set_learning_rates
from training.optimization.weight_average import WeightAverage
from training.params import OptimizerParams, ScheduleParams
from training.precision import BFLOAT16, FLOAT32, training_device
from training.tiny.muon import make_tiny_optimizer

Report = Callable[[int, dict[str, float]], None]


class Checkpoints(Protocol):
    """Where a part of the model keeps what it has learned so far."""

    def load(self) -> tuple[int, Any] | None:
        """Steps done and the tree that was saved with them."""

    def save(self, step: int, tree: Any) -> None:
        """Commit the tree after `step` steps."""

    def is_due(self, step: int) -> bool:
        """Whether the tree after `step` steps is to be saved."""

    def should_stop(self) -> bool:
        """Whether training is to end before it is done."""


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """How a part is trained, whatever the part.

    Args:
        report: Called after every step, with the step counted from 0 and its losses.
        precision: `bf16` for matrix products in bfloat16, which some processors are faster at, or `no`.
        checkpoints: None keeps nothing: a run that is stopped starts anew.
    """

    seed: int
    optimizer: OptimizerParams
    report: Report
    precision: str = FLOAT32
    checkpoints: Checkpoints | None = None

    def autocast(self) -> torch.autocast:
        """The context that a forward pass runs in."""
        return torch.autocast(training_device().type, torch.bfloat16, enabled=self.precision == BFLOAT16)


@dataclass(frozen=True)
class TrainingState:
    """All that changes while a part learns; `others` are tensors that no gradient moves."""

    parameters: Sequence[nn.Parameter]
    optimizer: torch.optim.Optimizer
    average: WeightAverage
    others: Sequence[Tensor] = field(default=())

    def tree(self) -> dict[str, Any]:
        """Everything, as nested containers."""
        return {
            "weights": [parameter.detach() for parameter in self.parameters],
            "averages": list(self.average.averages),
            "others": list(self.others),
            "optimizer": self.optimizer.state_dict(),
        }

    @torch.no_grad()
    def restore(self, tree: dict[str, Any]) -> None:
        """Put a tree back where it came from."""
        places = (*self.parameters, *self.average.averages, *self.others)
        values = (*tree["weights"], *tree["averages"], *tree["others"])
        for place, value in zip(places, values, strict=True):
            place.copy_(value)
        self.optimizer.load_state_dict(tree["optimizer"])


def fit(
    modules: Sequence[nn.Module],
    params: ScheduleParams,
    settings: FitSettings,
    losses_at: Callable[[int], dict[str, Tensor]],
    others: Sequence[Tensor] = (),
) -> WeightAverage:
    """Minimise the sum of the losses that `losses_at(step)` gives over all of `modules` that may learn; the
    average of the weights at the end.

    Every step seeds its own randomness, so a run is the same run whenever it is repeated or goes on from what
    was kept, together with `others`.

    Raises:
        Stopped: asked to stop, after keeping.
        UserError: a gradient is not finite; nothing has changed by it.
    """
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    optimizer = make_tiny_optimizer(modules, params, settings.optimizer)
    learning = TrainingState(parameters, optimizer, WeightAverage(parameters, params.ema), others)
    for step in range(_first_step(learning, settings.checkpoints), params.steps):
        if settings.checkpoints and settings.checkpoints.should_stop():
            settings.checkpoints.save(step, learning.tree())
            raise Stopped(f"stopped after {step} of {params.steps} steps")
        settings.report(step, _learn(learning, params, settings, losses_at, step))
        if settings.checkpoints and settings.checkpoints.is_due(step + 1):
            settings.checkpoints.save(step + 1, learning.tree())
    return learning.average


def _first_step(learning: TrainingState, checkpoints: Checkpoints | None) -> int:
    kept = checkpoints.load() if checkpoints else None
    if kept is None:
        return 0
    learning.restore(kept[1])
    return kept[0]


def _learn(
    learning: TrainingState,
    params: ScheduleParams,
    settings: FitSettings,
    losses_at: Callable[[int], dict[str, Tensor]],
    step: int,
) -> dict[str, float]:
    set_learning_rates(learning.optimizer, step, params)
    torch.manual_seed(settings.seed * 1_000_003 + step)
    with settings.autocast():
        losses = losses_at(step)
    learning.optimizer.zero_grad(set_to_none=True)
    sum(losses.values()).backward()
    norm = float(nn.utils.clip_grad_norm_(learning.parameters, settings.optimizer.clip_norm))
    if not math.isfinite(norm):
        raise UserError(f"the gradient of step {step} is {norm}: lower lr and muon_lr, or raise warmup")
    learning.optimizer.step()
    learning.average.update(step + 1)
    return {name: float(loss.detach()) for name, loss in losses.items()}
