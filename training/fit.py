"""The short loop that backbones share: steps under a schedule, clipped, averaged, kept as it goes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from training.averages import WeightAverage
from training.optimizers import make_optimizer, set_learning_rates
from training.params import ScheduleParams

CLIP_NORM = 1.0

Report = Callable[[int, dict[str, float]], None]


class Interrupted(Exception):  # noqa: N818 - it reads as what happened
    """Asked to stop, and everything up to here is kept."""


class Keeper(Protocol):
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
class Course:
    """How a part is trained, whatever the part.

    Args:
        report: Called after every step, with the step counted from 0 and its losses.
        precision: `bf16` for matrix products in bfloat16, which some processors are faster at, or `no`.
        keeper: None keeps nothing: a run that is stopped starts anew.
    """

    seed: int
    report: Report
    precision: str = "no"
    keeper: Keeper | None = None

    def autocast(self) -> torch.autocast:
        """The context that a forward pass runs in."""
        return torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16")


@dataclass(frozen=True)
class Learning:
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
    course: Course,
    losses_at: Callable[[int], dict[str, Tensor]],
    others: Sequence[Tensor] = (),
) -> WeightAverage:
    """Minimise the sum of the losses that `losses_at(step)` gives over all of `modules` that may learn; the
    average of the weights at the end.

    Every step seeds its own randomness, so a run is the same run whenever it is repeated or goes on from what
    was kept, together with `others`. Raises Interrupted after keeping.
    """
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    optimizer = make_optimizer(parameters, modules, params)
    learning = Learning(parameters, optimizer, WeightAverage(parameters, params.ema), others)
    for step in range(_first_step(learning, course.keeper), params.steps):
        if course.keeper and course.keeper.should_stop():
            course.keeper.save(step, learning.tree())
            raise Interrupted(f"stopped after {step} of {params.steps} steps")
        course.report(step, _learn(learning, params, course, losses_at, step))
        if course.keeper and course.keeper.is_due(step + 1):
            course.keeper.save(step + 1, learning.tree())
    return learning.average


def _first_step(learning: Learning, keeper: Keeper | None) -> int:
    kept = keeper.load() if keeper else None
    if kept is None:
        return 0
    learning.restore(kept[1])
    return kept[0]


def _learn(
    learning: Learning,
    params: ScheduleParams,
    course: Course,
    losses_at: Callable[[int], dict[str, Tensor]],
    step: int,
) -> dict[str, float]:
    set_learning_rates(learning.optimizer, step, params)
    torch.manual_seed(course.seed * 1_000_003 + step)
    with course.autocast():
        losses = losses_at(step)
    learning.optimizer.zero_grad(set_to_none=True)
    sum(losses.values()).backward()
    nn.utils.clip_grad_norm_(learning.parameters, CLIP_NORM)
    learning.optimizer.step()
    learning.average.update(step + 1)
    return {name: float(loss.detach()) for name, loss in losses.items()}
