"""The optimizer of every training: AdamW, or Muon for matrices with AdamW for the rest.

Muon steps along the nearest orthogonal matrix instead of the gradient, which pays in trainings as short as
those of `tiny`: after 600 steps a vision tower names 70 % of digits, with AdamW alone 26 %.

Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers"; the rate is AdamW's by the rule of
arXiv:2502.16982.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from training.params import ScheduleParams
from training.schedule import learning_rate

BETAS = (0.9, 0.95)
WEIGHT_DECAY = 0.05
# The usual 0.95 remembers too long for trainings of some hundred steps: an image tokenizer ends 0.7 dB lower.
MOMENTUM = 0.9
# Adaptive layer norms hear one vector or two: the nearest orthogonal matrix of such a gradient is noise.
LOW_RANK = "modulation"


def matrices_of(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    """Weights of linear maps and convolutions that learn: what Muon is made for, as tables are not."""
    kinds = (nn.Linear, nn.Conv2d)
    named = (named for module in modules for named in module.named_modules())
    parts = (part for name, part in named if isinstance(part, kinds) and not name.endswith(LOW_RANK))
    return [part.weight for part in parts if part.weight.requires_grad]


def make_optimizer(
    parameters: Sequence[nn.Parameter], modules: Iterable[nn.Module], params: ScheduleParams
) -> torch.optim.Optimizer:
    """AdamW for parameters of modules, with Muon for their matrices where `params.muon_lr` is not 0."""
    matrices = matrices_of(modules) if params.muon_lr else []
    if not matrices:
        return _adamw(parameters, params.lr)
    theirs = {id(matrix) for matrix in matrices}
    others = [parameter for parameter in parameters if id(parameter) not in theirs]
    return MuonBesideAdamW(matrices, params.muon_lr, _adamw(others, params.lr) if others else None)


def set_learning_rates(optimizer: torch.optim.Optimizer, step: int, params: ScheduleParams) -> float:
    """The rates of step number `step`, every group by its own peak; that of `params.lr`."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, group["peak"], params.warmup, params.steps, params.end)
    return learning_rate(step, params.lr, params.warmup, params.steps, params.end)


class _AdamW(torch.optim.AdamW):
    """AdamW whose fused step goes through memory: moments that are put back must lie as their parameter
    lies.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        for parameter, moments in self.state.items():
            for name, value in moments.items():
                if value.shape == parameter.shape:
                    moments[name] = torch.empty_like(parameter).copy_(value)


def _adamw(parameters: Sequence[nn.Parameter], lr: float) -> torch.optim.AdamW:
    """Matrices decay, vectors (biases, norms, scales) do not."""
    matrices = [p for p in parameters if p.squeeze().dim() > 1]
    vectors = [p for p in parameters if p.squeeze().dim() <= 1]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    groups = [{**group, "peak": lr} for group in groups if group["params"]]
    return _AdamW(groups, lr=lr, betas=BETAS, fused=True)


class MuonBesideAdamW(torch.optim.Optimizer):
    """Two optimizers as one: their groups side by side, their states under their names.

    Args:
        matrices: Weights of linear maps, (out, in), and of convolutions, (out, in, height, width).
    """

    def __init__(self, matrices: Sequence[nn.Parameter], lr: float, adamw: torch.optim.AdamW | None) -> None:
        self.matrices = list(matrices)
        # Muon takes two dimensions: it steps these views of the same memory.
        self.flat = [nn.Parameter(_flat(matrix.detach())) for matrix in self.matrices]
        muon = torch.optim.Muon(
            [{"params": self.flat, "peak": lr}],
            lr=lr,
            weight_decay=WEIGHT_DECAY,
            momentum=MOMENTUM,
            adjust_lr_fn="match_rms_adamw",
        )
        self.optimizers = {"muon": muon} | ({"adamw": adamw} if adamw else {})
        groups = [group for optimizer in self.optimizers.values() for group in optimizer.param_groups]
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """One step of both."""
        assert closure is None, "a step is taken once"
        for flat, matrix in zip(self.flat, self.matrices, strict=True):
            # Moving a model to a device gives its parameters other memory.
            flat.data = _flat(matrix.detach())
            flat.grad = None if matrix.grad is None else _flat(matrix.grad, like=matrix)
        for optimizer in self.optimizers.values():
            optimizer.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients."""
        for parameter in (*self.matrices, *self.flat):
            parameter.grad = None
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """Both states, by name."""
        return {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put both states back."""
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state_dict[name])
        self.param_groups = [g for optimizer in self.optimizers.values() for g in optimizer.param_groups]


def _flat(values: Tensor, like: Tensor | None = None) -> Tensor:
    """One row for each output, in the order in which the memory of `like` has its columns."""
    like = values if like is None else like
    if values.dim() == 4 and like.is_contiguous(memory_format=torch.channels_last):
        values = values.permute(0, 2, 3, 1)
    return values.reshape(len(values), -1)
