"""Optimizer of tiny trainings: Muon for weight matrices, AdamW for all other parameters.

Muon steps along the orthogonal matrix that is nearest to the momentum. That pays in trainings of some hundred
steps: after 600 a vision tower classifies 70 % of digits correctly, with AdamW alone 26 %. The 7b recipes use
AdamW alone.

Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers"; the rate is AdamW's by the rule of
arXiv:2502.16982.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from training.optimization.optimizer import make_adamw
from training.params import OptimizerParams, ScheduleParams
from training.precision import AUTO, BFLOAT16, resolved

# The usual 0.95 is too slow for trainings of some hundred steps: an image tokenizer ends 0.7 dB lower.
MOMENTUM = 0.9
# Layers of adaptive layer norm, whose input is one of two vectors: their gradients have rank one or two, and
# the nearest orthogonal matrix is mostly noise.
LOW_RANK_LAYER = "modulation"


def make_tiny_optimizer(
    modules: Sequence[nn.Module], schedule: ScheduleParams, params: OptimizerParams
) -> torch.optim.Optimizer:
    """Optimizer of the trainable parameters: MuonWithAdamW, or AdamW for all where `muon_lr` is 0."""
    named = [pair for module in modules for pair in module.named_parameters() if pair[1].requires_grad]
    matrices = matrices_of(modules) if schedule.muon_lr else []
    if not matrices:
        return make_adamw(named, schedule.lr, params, LayoutKeepingAdamW)
    matrix_ids = {id(matrix) for matrix in matrices}
    others = [(name, parameter) for name, parameter in named if id(parameter) not in matrix_ids]
    adamw = make_adamw(others, schedule.lr, params, LayoutKeepingAdamW) if others else None
    return MuonWithAdamW(matrices, schedule.muon_lr, params.weight_decay, adamw)


def matrices_of(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    """Trainable weights of linear maps and convolutions, without embedding tables: what Muon is made for."""
    layers = (
        layer
        for module in modules
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d) and not name.endswith(LOW_RANK_LAYER)
    )
    return [layer.weight for layer in layers if layer.weight.requires_grad]


class LayoutKeepingAdamW(torch.optim.AdamW):
    """AdamW that gives loaded moments the memory layout of their parameters.

    The fused kernel goes through memory in order: in a channels-last model it would pair a weight with
    another weight's moments.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        for parameter, moments in self.state.items():
            for name, value in moments.items():
                if value.shape == parameter.shape:
                    moments[name] = torch.empty_like(parameter).copy_(value)


class Float32Muon(torch.optim.Muon):
    """torch's Muon on processors without bfloat16: its products in float32, rounded to bfloat16 as there.

    A processor without bfloat16 instructions takes 18 to 32 times as long for torch's own: 0.9 of 1.0 s a
    step of the vision tower. Rounding belongs to what is computed: the iterations enlarge small singular
    values some hundred times, and so the rounding errors of a gradient of low rank. Without it an update of
    rank 16 differs by a third, with it by less than a hundredth.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """One step."""
        assert closure is None, "a step is taken once"
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step_one(parameter, parameter.grad, group)

    def _step_one(self, parameter: nn.Parameter, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        momentum = state.setdefault("momentum_buffer", torch.zeros_like(gradient))
        momentum.lerp_(gradient, 1 - group["momentum"])
        update = _nearly_orthogonal(gradient.lerp(momentum, group["momentum"]), group)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        # The rate that moves a weight as far as AdamW does ("match_rms_adamw").
        parameter.add_(update, alpha=-0.2 * group["lr"] * max(parameter.shape) ** 0.5)


def _nearly_orthogonal(matrix: Tensor, group: dict[str, Any]) -> Tensor:
    """The matrix with all singular values near 1, by Newton-Schulz iterations."""
    a, b, c = group["ns_coefficients"]
    is_tall = matrix.shape[0] > matrix.shape[1]
    wide = _rounded(matrix.T if is_tall else matrix)
    wide = _rounded(wide / _rounded(wide.norm()).clamp(min=group["eps"]))
    for _ in range(group["ns_steps"]):
        gram = _rounded(wide @ wide.T)
        gram_update = _rounded(torch.addmm(gram, gram, gram, beta=b, alpha=c))
        wide = _rounded(torch.addmm(wide, gram_update, wide, beta=a))
    return wide.T if is_tall else wide


def _rounded(values: Tensor) -> Tensor:
    """The nearest bfloat16 numbers, in float32."""
    return values.bfloat16().float()


class MuonWithAdamW(torch.optim.Optimizer):
    """Optimizer that applies Muon to weight matrices and AdamW to all other parameters.

    Args:
        matrices: Weights of linear maps, (out, in), and of convolutions, (out, in, height, width).
        lr: Peak learning rate of Muon.
    """

    def __init__(
        self,
        matrices: Sequence[nn.Parameter],
        lr: float,
        weight_decay: float,
        adamw: torch.optim.AdamW | None,
    ) -> None:
        self.matrices = list(matrices)
        # Muon takes two dimensions: it updates these views of the same memory.
        self.flat = [nn.Parameter(_flat(matrix.detach())) for matrix in self.matrices]
        kind = torch.optim.Muon if resolved(AUTO) == BFLOAT16 else Float32Muon
        muon = kind(
            [{"params": self.flat, "peak": lr}],
            lr=lr,
            weight_decay=weight_decay,
            momentum=MOMENTUM,
            adjust_lr_fn="match_rms_adamw",
        )
        self.optimizers = {"muon": muon} | ({"adamw": adamw} if adamw else {})
        groups = [group for optimizer in self.optimizers.values() for group in optimizer.param_groups]
        super().__init__(groups, {})
        self._share_states()

    def _share_states(self) -> None:
        """Show the states of both optimizers as this one's, a matrix's as that of its view."""
        muon, adamw = self.optimizers["muon"], self.optimizers.get("adamw")
        for flat, matrix in zip(self.flat, self.matrices, strict=True):
            self.state[matrix] = muon.state[flat]
        for parameter in [p for group in adamw.param_groups for p in group["params"]] if adamw else []:
            self.state[parameter] = adamw.state[parameter]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """One step of both optimizers."""
        assert closure is None, "no closure: the loss is evaluated once per step"
        for flat, matrix in zip(self.flat, self.matrices, strict=True):
            # A model that was moved to a device has new memory.
            flat.data = _flat(matrix.detach())
            flat.grad = None if matrix.grad is None else _flat(matrix.grad, like=matrix)
        for optimizer in self.optimizers.values():
            optimizer.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop all gradients."""
        for parameter in (*self.matrices, *self.flat):
            parameter.grad = None
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """States of both optimizers, {"muon": ..., "adamw": ...}."""
        return {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore both optimizers."""
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state_dict[name])
        self.param_groups = [g for optimizer in self.optimizers.values() for g in optimizer.param_groups]
        self._share_states()


def _flat(values: Tensor, like: Tensor | None = None) -> Tensor:
    """A matrix with one row per output, its columns in the memory order of `like`, (out, in * h * w)."""
    like = values if like is None else like
    if values.dim() == 4 and like.is_contiguous(memory_format=torch.channels_last):
        values = values.permute(0, 2, 3, 1)
    return values.reshape(len(values), -1)
