"""Activations of a training step: what is kept from a micro-batch's forward pass for its backward pass, by
part.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from training.planning.gradients import Part, Traced
from training.planning.operations import Counts, Operation, Reads

FLOAT32_BYTES = 4
# Logits that the language model's head has in memory at a time (model/text_head.py).
HEAD_LOGITS = 1 << 24
HEAD_LOSS, LOSS = "language_model.loss", ".loss"


@dataclass(frozen=True)
class Precision:
    """In which types a step computes.

    Args:
        activation_bytes: Of one element, 2 in bfloat16.
        casts: Whether weights that learn are in float32 and cast for each product, as autocast does: products
            keep what they were cast to, each a copy of its own, and what stands before them is in float32.
    """

    activation_bytes: int
    casts: bool = False


@dataclass
class Kept:
    """Bytes that are kept.

    Args:
        by_part: Throughout the backward pass.
        largest_block: By one checkpointed block, while it is computed again.
        largest_operation: By gradients while one operation is gone back through.
    """

    by_part: dict[Part, float] = field(default_factory=lambda: dict.fromkeys(Part, 0.0))
    largest_block: float = 0.0
    largest_operation: float = 0.0

    @property
    def total(self) -> float:
        """By all parts."""
        return sum(self.by_part.values())


def kept_activations(
    traced: Iterable[Traced], counts: Counts, precision: Precision, *, checkpoint_activations: bool
) -> Kept:
    """Bytes kept by one micro-batch of so many units."""
    kept, block, is_input_kept = Kept(), 0.0, False
    for step in traced:
        operation = step.operation
        if operation.reads is not Reads.SAME:
            is_input_kept = False
        size = _bytes_of(step, counts, precision, is_input_kept)
        is_input_kept = is_input_kept or (step.learns and operation.kind == "linear" and not precision.casts)
        kept.largest_operation = max(kept.largest_operation, _gradients_of(step, counts, precision))
        is_recomputed = checkpoint_activations and step.block_needs_gradient
        if operation.kind == "block":
            block = 0.0
            size = _rows(operation, counts) * operation.outputs * precision.activation_bytes * is_recomputed
        elif operation.in_block and is_recomputed:
            block += size
            kept.largest_block = max(kept.largest_block, block)
            continue
        kept.by_part[step.part] += size
    return kept


def _bytes_of(step: Traced, counts: Counts, precision: Precision, is_input_kept: bool) -> float:
    operation, width = step.operation, precision.activation_bytes
    size = 0
    if step.needs_gradient or (step.learns and operation.kind == "pointwise"):
        size += operation.kept * width + operation.kept_floats * FLOAT32_BYTES
    if step.learns and not is_input_kept:
        is_cast_later = precision.casts and operation.kind == "table"
        size += operation.kept_to_learn * (FLOAT32_BYTES if is_cast_later else width)
    total = size * _rows(operation, counts)
    if precision.casts and step.learns and operation.kind == "linear" and total:
        total += operation.parameters * width
    return min(total, float(HEAD_LOGITS * FLOAT32_BYTES)) if operation.path == HEAD_LOSS else total


def _gradients_of(step: Traced, counts: Counts, precision: Precision) -> float:
    """Of an operation's result, its input and its weights, in the backward pass, before they are added up."""
    operation = step.operation
    if not step.needs_gradient and not step.learns:
        return 0.0
    rows = _rows(operation, counts)
    if operation.path.endswith(LOSS):
        return min(rows * operation.kept_floats, HEAD_LOGITS) * (FLOAT32_BYTES + precision.activation_bytes)
    weights = operation.parameters * step.learns * (rows > 0)
    return (rows * (operation.inputs + operation.outputs) + weights) * precision.activation_bytes


def _rows(operation: Operation, counts: Counts) -> float:
    return operation.rows * counts[operation.unit]
