"""Training loop that all backbones share: schedule, clipped gradients, weight average, checkpoints."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from model.errors import UserError
from training.backbones.backbone_checkpoints import BackboneCheckpoints
from training.checkpoints import step_folders
from training.errors import Stopped
from training.optimization.schedule import set_learning_rates
from training.optimization.weight_average import WeightAverage
from training.params import OptimizerParams, ScheduleParams
from training.precision import BFLOAT16, FLOAT32, training_device
from training.tiny.muon import make_tiny_optimizer

# Called after every step with the step, counted from 0, and its losses by name.
OnStep = Callable[[int, dict[str, float]], None]
# Returns the losses of a step, by name; their sum is minimised.
ComputeLosses = Callable[[int], dict[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """Settings of `fit` that are the same for every backbone.

    Args:
        name: Of the backbone, for messages.
        seed: Of starting weights, batches and every other random number.
        precision: `bf16` for autocast to bfloat16, `no` for float32.
        checkpoints: Where training resumes from; None saves nothing.
    """

    seed: int
    optimizer_params: OptimizerParams
    on_step: OnStep
    name: str = "a backbone"
    precision: str = FLOAT32
    checkpoints: BackboneCheckpoints | None = None

    def autocast(self) -> torch.autocast:
        """The autocast context of a forward pass."""
        return torch.autocast(training_device().type, torch.bfloat16, enabled=self.precision == BFLOAT16)


@dataclass(frozen=True)
class TrainingState:
    """All that changes during training; `buffers` are tensors that change without gradients."""

    parameters: Sequence[nn.Parameter]
    optimizer: torch.optim.Optimizer
    average: WeightAverage
    buffers: Sequence[Tensor]

    def to_tree(self) -> dict[str, Any]:
        """The state as nested containers of tensors, for a checkpoint."""
        return {
            "weights": [parameter.detach() for parameter in self.parameters],
            "averages": list(self.average.averages),
            "buffers": list(self.buffers),
            "optimizer": self.optimizer.state_dict(),
        }

    @torch.no_grad()
    def restore(self, tree: dict[str, Any]) -> None:
        """Load what `to_tree` returned, in place."""
        targets = (*self.parameters, *self.average.averages, *self.buffers)
        values = (*tree["weights"], *tree["averages"], *tree["buffers"])
        for target, value in zip(targets, values, strict=True):
            target.copy_(value)
        self.optimizer.load_state_dict(tree["optimizer"])


def fit(
    modules: Sequence[nn.Module],
    params: ScheduleParams,
    settings: FitSettings,
    compute_losses: ComputeLosses,
    buffers: Sequence[Tensor] = (),
) -> None:
    """Train the trainable parameters of `modules`, in place; in the end they have their averaged values.

    Each step seeds the random number generator from its number, so that a resumed run has the same result,
    bit for bit.

    Args:
        buffers: Tensors that `compute_losses` changes, such as a codebook; saved in checkpoints.

    Raises:
        Stopped: `settings.checkpoints.should_stop` returned True, and everything so far is saved.
        SaveError: the same, but it could not be saved.
        UserError: a gradient is not finite; it has changed nothing.
    """
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    optimizer = make_tiny_optimizer(modules, params, settings.optimizer_params)
    state = TrainingState(parameters, optimizer, WeightAverage(parameters, params.ema), buffers)
    first = _resume(state, settings.checkpoints)
    for step in range(first, params.steps):
        if settings.checkpoints and settings.checkpoints.should_stop():
            if step > first and not settings.checkpoints.save(step, state.to_tree()):
                raise step_folders.SaveError(f"stopped after {step} steps, which could not be saved")
            raise Stopped(f"stopped after {step} of {params.steps} steps")
        settings.on_step(step, _train_step(state, params, settings, compute_losses, step))
        if settings.checkpoints and settings.checkpoints.is_due(step + 1):
            settings.checkpoints.save(step + 1, state.to_tree())
    state.average.copy_to_parameters()


def _resume(state: TrainingState, checkpoints: BackboneCheckpoints | None) -> int:
    """Load the newest checkpoint, if there is one; the number of steps done."""
    newest = checkpoints.load() if checkpoints else None
    if newest is None:
        return 0
    num_done, tree = newest
    state.restore(tree)
    return num_done


def _train_step(
    state: TrainingState,
    params: ScheduleParams,
    settings: FitSettings,
    compute_losses: ComputeLosses,
    step: int,
) -> dict[str, float]:
    set_learning_rates(state.optimizer.param_groups, step, params)
    torch.manual_seed(settings.seed * 1_000_003 + step)
    with settings.autocast():
        losses = compute_losses(step)
    state.optimizer.zero_grad(set_to_none=True)
    sum(losses.values()).backward()
    norm = float(nn.utils.clip_grad_norm_(state.parameters, settings.optimizer_params.clip_norm))
    if not math.isfinite(norm):
        where = f"step {step} of {settings.name}"
        raise UserError(f"the gradient of {where} is {norm}: lower lr and muon_lr, or raise warmup")
    state.optimizer.step()
    state.average.update(step + 1)
    return {name: float(loss.detach()) for name, loss in losses.items()}
