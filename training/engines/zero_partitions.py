"""Which elements of which parameters DeepSpeed keeps on a process, as slices of its flat tensors.

DeepSpeed has no public form for this. What is read here are attributes of version 0.19's two ZeRO optimizers;
the tests of `zero` compare every one of them against data parallel.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from training.checkpoints.slices import Slice


class PartitionedStates:
    """ZeRO-1 and ZeRO-2: each group of parameters is one flat tensor, of which every process keeps a part.

    Args:
        optimizer: DeepSpeedZeroOptimizer.
    """

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer

    @property
    def weights(self) -> list[Tensor]:
        """The flat tensors of this process, in float32; by them the optimizer keeps its states."""
        return self.optimizer.single_partition_of_fp32_groups

    def slices(self, named: Sequence[tuple[str, nn.Parameter]]) -> list[Slice]:
        """The parameters, or parts of them, in these tensors."""
        found = []
        for name, parameter in named:
            if (mapping := parameter._hp_mapping) is not None:
                part, place = mapping.lp_fragment_address, mapping.hp_fragment_address
                found.append(Slice(name, part.start, part.numel, mapping.param_group_index, place.start))
        return found

    def states_begun(self) -> None:
        """Tell DeepSpeed of states that it has not made itself."""
        self.optimizer._hp_optimizer_states_linked = False
        self.optimizer._lazy_init_hp_params_optimizer_state()

    def apply_weights(self) -> None:
        """Copy these weights to the modules of all processes."""
        self.optimizer.update_lp_params()


class PartitionedWeights:
    """ZeRO-3: of every parameter each process keeps an equal part.

    Args:
        optimizer: DeepSpeedZeroOptimizer_Stage3.
    """

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer

    @property
    def weights(self) -> list[Tensor]:
        """The flat tensors of this process, in float32; by them the optimizer keeps its states."""
        return self.optimizer.fp32_partitioned_groups_flat

    def slices(self, named: Sequence[tuple[str, nn.Parameter]]) -> list[Slice]:
        """This process's part of every parameter; the last part of one may be padded."""
        rank, found = torch.distributed.get_rank(), []
        for name, parameter in named:
            flat, start, size = self.optimizer.grad_position[self.optimizer.get_param_id(parameter)]
            first = rank * size
            if (count := min(size, parameter.ds_numel - first)) > 0:
                found.append(Slice(name, first, count, flat, start))
        return found

    def states_begun(self) -> None:
        """Nothing: DeepSpeed looks states up when it needs them."""

    def apply_weights(self) -> None:
        """Copy these weights to the parts from which modules are gathered."""
        optimizer = self.optimizer
        for index in range(len(self.weights)):
            optimizer._reassign_or_swap_out_partitioned_parameters(index)
        if optimizer.persistent_parameters:
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)
        optimizer.invalidate_secondary_tensor()
