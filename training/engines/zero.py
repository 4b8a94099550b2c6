"""DeepSpeed's ZeRO through accelerate: processes share optimizer states (1), gradients (2) and weights (3).

Source: Rajbhandari et al. 2020, "ZeRO: memory optimizations toward training trillion parameter models"
(arXiv:1910.02054).
"""

import logging
import math
import os
import socket
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DeepSpeedPlugin
from torch import Tensor, nn

from training.checkpoints.slices import Flats, Slice
from training.engines.engine import Engine, GradientNorms, MakeOptimizer, NamedParameters, part_of
from training.engines.zero_partitions import PartitionedStates, PartitionedWeights

BFLOAT16 = "bf16"
BUCKET_ELEMENTS = 200_000_000


class ZeroEngine(Engine):
    """One of ZeRO's three stages.

    With `bf16`, modules compute in bfloat16; weights that learn and their states are in float32 besides, and
    gradients of micro-batches are added up in float32 (ZeRO-1: in bfloat16).

    Args:
        stage: 1, 2 or 3.
        offload: Keep optimizer states, and update weights, in host memory.
    """

    needs_all_modules = True
    replicates_state = False

    def __init__(
        self,
        device: torch.device,
        stage: int,
        precision: str,
        clip_norm: float,
        timeout: timedelta,
        offload: bool,
    ) -> None:
        self.shards_weights = stage == 3
        self.config = zero_config(stage, precision, clip_norm, offload)
        _prepare_deepspeed(device)
        # Without this, Accelerator takes every process of a group on CPUs for one alone.
        PartialState(cpu=device.type == "cpu", timeout=timeout)
        self._accelerator = Accelerator(deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=self.config))
        self.rank, self.world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        self.device, self._dtype = device, torch.bfloat16 if precision == BFLOAT16 else torch.float32

    def prepare(self, module: nn.Module, named: NamedParameters, make_optimizer: MakeOptimizer) -> None:
        self._named = named
        if self._dtype == torch.float32:
            module.float()
        else:
            # DeepSpeed rounds weights; this rounds what comes in, images and positions, and sums in float32.
            module.forward = torch.autocast(self.device.type, self._dtype)(module.forward)
        optimizer = make_optimizer(self._named)
        self._engine, self._optimizer = self._accelerator.prepare(module, optimizer)
        zero = self._engine.optimizer
        self._parts = PartitionedWeights(zero) if self.shards_weights else PartitionedStates(zero)
        self._states = zero.optimizer.state
        self._squares: dict[str, Tensor] = {}
        zero.optimizer.register_step_pre_hook(self._measure)

    def forward(self, batch: Any, is_last: bool = True) -> Tensor:
        return self._engine(batch)

    def backward(self, loss: Tensor, is_last: bool) -> None:
        self._engine.set_gradient_accumulation_boundary(is_last)
        # DeepSpeed averages over processes.
        self._engine.backward(loss * self.world_size)

    def update(self, by_part: bool = False) -> GradientNorms:
        names = sorted({part_of(name) for name, _ in self._named}) if by_part else []
        self._squares = dict.fromkeys(names, torch.zeros((), device=self.device))
        self._engine.step()
        norm = float(self._engine.get_global_grad_norm())
        if not math.isfinite(norm) and not self.shards_weights:
            # With states in host memory, ZeRO-2 in bfloat16 would add all later gradients to this one.
            sums = self._engine.optimizer.averaged_gradients
            sums.update(dict.fromkeys(sums))
        if by_part:
            totals = self.total(torch.stack(list(self._squares.values())))
            self._squares = dict(zip(self._squares, totals, strict=True))
        return self._norms_by_part(self._squares, norm, self.config["gradient_clipping"])

    def _measure(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Add the squares of those flat gradients that the optimizer is about to use, already clipped."""
        if not self._squares:
            return
        # DeepSpeed steps one flat tensor after another; in host memory, the others keep their gradients.
        used = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
        weights = self._parts.weights
        for part in self.slices():
            if id(weights[part.flat]) in used and (gradient := weights[part.flat].grad) is not None:
                square = gradient[part.start : part.start + part.count].float().square().sum()
                name = part_of(part.name)
                self._squares[name] = self._squares[name] + square.to(self.device)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self._engine.optimizer.param_groups

    def slices(self) -> list[Slice]:
        return self._parts.slices(self._named)

    def flats(self) -> Flats:
        weights = self._parts.weights
        kinds: dict[str, list[Tensor | None]] = {"weight": [weight.detach() for weight in weights]}
        for index, weight in enumerate(weights):
            for kind, state in self._states[weight].items():
                if state.dim():
                    kinds.setdefault(kind, [None] * len(weights))[index] = state
        return kinds

    def begin_states(self, kinds: Callable[[str], Sequence[str]], num_updates: int) -> None:
        kinds_of_flat: dict[int, set[str]] = {}
        for part in self.slices():
            kinds_of_flat.setdefault(part.flat, set()).update(kinds(part.name))
        for index, weight in enumerate(self._parts.weights):
            # Before the first update there are none: the optimizer makes its own.
            if found := kinds_of_flat.get(index):
                state = self._states[weight]
                state.update({kind: torch.zeros_like(weight) for kind in found})
                state["step"] = torch.tensor(float(num_updates), device=weight.device)
        if any(kinds_of_flat.values()):
            self._parts.states_begun()

    def apply_weights(self) -> None:
        self._parts.apply_weights()

    def total(self, values: Tensor) -> Tensor:
        values = values.to(self.device, copy=True)
        torch.distributed.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        found: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(found, value)
        return found


def zero_config(stage: int, precision: str, clip_norm: float, offload: bool) -> dict[str, Any]:
    """DeepSpeed's configuration, which a recipe decides and nobody stores."""
    zero: dict[str, Any] = {
        "stage": stage,
        "overlap_comm": torch.cuda.is_available(),
        "reduce_bucket_size": BUCKET_ELEMENTS,
        "allgather_bucket_size": BUCKET_ELEMENTS,
    }
    # ZeRO-1 with float32 gradients is another optimizer of DeepSpeed, whose states lie elsewhere.
    sums = {"data_types": {"grad_accum_dtype": "fp32"}} if stage > 1 else {}
    if offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": clip_norm,
        "steps_per_print": 1 << 40,
        "zero_allow_untested_optimizer": True,
        # torch's own AdamW updates on CPUs as fast, and needs no compiler.
        "zero_force_ds_cpu_optimizer": False,
        # In float32, and with stage 3, DeepSpeed always looks whether a gradient is finite.
        "bf16": {"enabled": precision == BFLOAT16, "check_grad_overflow": True},
        "zero_optimization": zero,
        **sums,
    }


def _prepare_deepspeed(device: torch.device) -> None:
    """Give one process without a launcher a group of its own, and keep DeepSpeed from compiling for CPUs."""
    import deepspeed.ops

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if device.type == "cpu":
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if "RANK" not in os.environ:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
