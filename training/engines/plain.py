"""One process, or data parallel: every process holds all parameters and all states."""

import contextlib
import math
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, gather_object
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from training.checkpoints.slices import Flats, Slice
from training.engines.engine import Engine, GradientNorms, MakeOptimizer, NamedParameters, part_of


class PlainEngine(Engine):
    """PyTorch's DistributedDataParallel through accelerate; for one process no wrapper at all.

    Parameters that learn and their states are in float32, whatever the precision of matrix products.
    """

    def __init__(self, device: torch.device, precision: str, clip_norm: float, timeout: timedelta) -> None:
        self._accelerator = Accelerator(
            cpu=device.type == "cpu",
            mixed_precision=precision,
            kwargs_handlers=[
                # A step without images leaves some module without a gradient.
                DistributedDataParallelKwargs(find_unused_parameters=True),
                InitProcessGroupKwargs(timeout=timeout),
            ],
        )
        self.rank, self.world_size = self._accelerator.process_index, self._accelerator.num_processes
        self.device, self._clip_norm = self._accelerator.device, clip_norm

    def prepare(self, module: nn.Module, named: NamedParameters, make_optimizer: MakeOptimizer) -> None:
        self._named = named
        for _, parameter in self._named:
            parameter.data = parameter.data.float()
        module.to(self.device)
        self._optimizer = make_optimizer(self._named)
        self._module = self._accelerator.prepare(module)

    def forward(self, batch: Any, is_last: bool = True) -> Tensor:
        with self._exchanging(is_last):
            return self._module(batch)

    def backward(self, loss: Tensor, is_last: bool) -> None:
        with self._exchanging(is_last):
            # Data parallel averages over processes.
            self._accelerator.backward(loss * self.world_size)

    def _exchanging(self, is_last: bool) -> contextlib.AbstractContextManager[None]:
        """Around both passes: it is the forward one that decides whether the backward one exchanges."""
        if is_last or not isinstance(self._module, DistributedDataParallel):
            return contextlib.nullcontext()
        return self._module.no_sync()

    def update(self, by_part: bool = False) -> GradientNorms:
        parameters = [parameter for _, parameter in self._named]
        for parameter in parameters:
            # As ZeRO has it: what nobody used decays, and its moments too.
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        norm = float(nn.utils.clip_grad_norm_(parameters, self._clip_norm))
        squares = self._squares() if by_part else {}
        if math.isfinite(norm):
            self._optimizer.step()
        self._optimizer.zero_grad()
        return self._norms_by_part(squares, norm, self._clip_norm)

    def _squares(self) -> dict[str, Tensor]:
        squares: dict[str, Tensor] = {}
        for name, parameter in self._named:
            square = parameter.grad.square().sum()
            squares[part_of(name)] = squares.get(part_of(name), 0) + square
        return squares

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self._optimizer.param_groups

    def slices(self) -> list[Slice]:
        return [Slice(name, 0, p.numel(), flat, 0) for flat, (name, p) in enumerate(self._named)]

    def flats(self) -> Flats:
        kinds: dict[str, list[Tensor | None]] = {"weight": [p.detach().view(-1) for _, p in self._named]}
        for index, (_, parameter) in enumerate(self._named):
            for kind, state in self._optimizer.state[parameter].items():
                if state.dim():
                    kinds.setdefault(kind, [None] * len(self._named))[index] = state.view(-1)
        return kinds

    def begin_states(self, kinds: Callable[[str], Sequence[str]], num_updates: int) -> None:
        for name, parameter in self._named:
            state = self._optimizer.state[parameter]
            state.update({kind: torch.zeros_like(parameter) for kind in kinds(name)})
            if "exp_avg" in state:
                state["step"] = torch.tensor(float(num_updates), device=self.device)

    def apply_weights(self) -> None:
        """Nothing: they are the module's own."""

    def total(self, values: Tensor) -> Tensor:
        values = values.to(self.device)
        return values if self.world_size == 1 else self._accelerator.reduce(values)

    def gather(self, value: Any) -> list[Any]:
        return gather_object([value])
