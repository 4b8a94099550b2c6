"""FLOPs of a training step by part and by pass: forward, backward for activations, backward for weights.

Model FLOPs are what the mathematics needs, the numerator of model FLOPs utilisation (MFU, arXiv:2204.02311);
hardware FLOPs add what activation checkpointing and the attention kernel's backward pass compute again.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from training.planning.gradients import Part, Traced
from training.planning.operations import Counts

# The fused kernels keep no attention weights, so their backward pass first multiplies queries and keys again:
# half of the forward pass. PyTorch's counter says the same of them, `sdpa_backward_flop_count` in
# torch/utils/flop_counter.py.
ATTENTION_RECOMPUTED = 0.5


@dataclass(frozen=True)
class Flops:
    """FLOPs of the passes of one part, or of several."""

    forward: float = 0.0
    backward_activations: float = 0.0
    backward_weights: float = 0.0
    recomputed: float = 0.0

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(
            self.forward + other.forward,
            self.backward_activations + other.backward_activations,
            self.backward_weights + other.backward_weights,
            self.recomputed + other.recomputed,
        )

    @property
    def model(self) -> float:
        """What counts for MFU."""
        return self.forward + self.backward_activations + self.backward_weights

    @property
    def hardware(self) -> float:
        """What is computed."""
        return self.model + self.recomputed


def count_flops(
    traced: Iterable[Traced], counts: Counts, *, checkpoint_activations: bool, fused_attention: bool = True
) -> dict[Part, Flops]:
    """FLOPs of every part over so many units.

    Args:
        fused_attention: Whether attention is one kernel, as on GPUs, or two products that keep their weights.
    """
    by_part = {part: Flops() for part in Part}
    for step in traced:
        by_part[step.part] += _of_step(step, counts, checkpoint_activations, fused_attention)
    return by_part


def total_of(by_part: dict[Part, Flops]) -> Flops:
    """The sum over parts."""
    return sum(by_part.values(), Flops())


def _of_step(step: Traced, counts: Counts, checkpoint_activations: bool, fused_attention: bool) -> Flops:
    operation = step.operation
    forward = operation.forward_flops(counts)
    is_attention = operation.kind == "attention"
    recomputed = 0.0
    if checkpoint_activations and operation.in_block and step.block_needs_gradient:
        recomputed += 0.0 if operation.ends_block else forward
    if is_attention and fused_attention and step.needs_gradient:
        recomputed += ATTENTION_RECOMPUTED * forward
    # Each of the two products of attention has two inputs that need a gradient.
    towards_inputs = 2.0 if is_attention else 1.0
    return Flops(
        forward,
        towards_inputs * forward if step.needs_gradient else 0.0,
        forward if step.learns else 0.0,
        recomputed,
    )
