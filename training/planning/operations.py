"""Operations of the model: each with its weights, its FLOPs and what it keeps for the backward pass, by
formula.

Nothing is built: an operation is a few integers. A multiplication and an addition are two floating-point
operations (FLOPs), as in torch.utils.flop_counter; norms, activations and sums, which that counter ignores as
well, count nothing. What is kept is what PyTorch's autograd saves, in elements; weights are not counted
again.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum


class Unit(StrEnum):
    """What an operation is applied to, and what a workload counts."""

    POSITION = "positions"
    """A position of the language model: a word, or a part of a picture."""
    SQUARED_POSITION = "positions_squared"
    """A pair of positions of one sample."""
    TARGET = "targets"
    """A position whose next word is supervised."""
    INPUT_IMAGE = "input_images"
    DRAWN_IMAGE = "drawn_images"
    DRAWING_PASS = "drawing_passes"
    """A forward pass of a micro-batch that has pictures to draw."""


class Reads(StrEnum):
    """Where an operation's input comes from, which decides whether a gradient flows back there."""

    BEFORE = "the result of the operation before"
    SAME = "the same as the operation before, as keys do beside queries"
    CONDITION = "the condition of the visual decoder, which is a start embedding"


Counts = Mapping[Unit, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One module, or the attention in it.

    Args:
        path: Of the module.
        kind: `linear`, `convolution`, `attention`, `table` for weights without a matrix product, `pointwise`
            for what has neither, or `block` for the input of a block.
        rows: How often it is applied for one `unit`.
        flops: Of one row, in the forward pass.
        inputs, outputs: Widths of a linear map.
        in_block: Whether it lies in a block that activation checkpointing computes again.
        ends_block: Whether the block keeps nothing of its result, so that a checkpointed block stops before
            it.
        kept: Elements of one row that are kept where a gradient flows, in the type of activations.
        kept_floats: The same, always in float32.
        kept_to_learn: Elements of one row, of its input, that are kept where its weights learn.
    """

    path: str
    kind: str
    unit: Unit = Unit.POSITION
    rows: float = 0.0
    flops: int = 0
    parameters: int = 0
    inputs: int = 0
    outputs: int = 0
    reads: Reads = Reads.BEFORE
    in_block: bool = False
    ends_block: bool = False
    kept: int = 0
    kept_floats: int = 0
    kept_to_learn: int = 0

    def forward_flops(self, counts: Counts) -> float:
        """FLOPs of the forward pass over so many units."""
        return self.flops * self.rows * counts[self.unit]


@dataclass(frozen=True, slots=True)
class Applied:
    """How often the operations of one place are applied, for their constructors below."""

    unit: Unit
    rows: float = 1.0
    in_block: bool = False

    def linear(
        self,
        path: str,
        inputs: int,
        outputs: int,
        *,
        bias: bool = True,
        reads: Reads = Reads.BEFORE,
        rows: float | None = None,
        ends_block: bool = False,
        is_input_kept: bool = False,
    ) -> Operation:
        """A linear map.

        Args:
            is_input_kept: Whether its input is what the operation before keeps in any case.
        """
        return Operation(
            path=path,
            kind="linear",
            unit=self.unit,
            rows=self.rows if rows is None else rows,
            flops=2 * inputs * outputs,
            parameters=inputs * outputs + outputs * bias,
            inputs=inputs,
            outputs=outputs,
            reads=reads,
            in_block=self.in_block,
            ends_block=ends_block,
            kept_to_learn=0 if is_input_kept else inputs,
        )

    def convolution(
        self,
        path: str,
        inputs: int,
        outputs: int,
        kernel: int,
        side: int,
        *,
        uses: int = 1,
        bias: bool = True,
    ) -> Operation:
        """A two-dimensional convolution.

        Args:
            side: Of the square map that it makes.
            uses: How often it is applied for one unit.
        """
        weights = inputs * outputs * kernel * kernel
        return Operation(
            path=path,
            kind="convolution",
            unit=self.unit,
            rows=self.rows * uses * side * side,
            flops=2 * weights,
            parameters=weights + outputs * bias,
        )

    def attention(self, path: str, width: int, length: int = 1) -> Operation:
        """Softmax attention of all positions to all: queries times keys, then weights times values.

        Masked pairs count, as they do in PyTorch's counter.

        Args:
            width: Of all heads together.
            length: Of one sequence of a unit; 1 where the unit is a pair of positions.
        """
        return Operation(
            path=path,
            kind="attention",
            unit=self.unit,
            rows=float(length * length),
            flops=2 * 2 * width,
            in_block=self.in_block,
        )

    def table(self, path: str, parameters: int) -> Operation:
        """Weights without a matrix product: an embedding, a bias of its own."""
        return Operation(
            path=path,
            kind="table",
            unit=self.unit,
            rows=self.rows,
            parameters=parameters,
            in_block=self.in_block,
        )

    def rms_norm(self, path: str, width: int) -> Operation:
        """A norm that computes in float32: it keeps its input and one statistic in it, and its result to
        learn.
        """
        return replace(self.table(path, width), kept_floats=width + 1, kept_to_learn=width)

    def pointwise(
        self, path: str, kept: int, *, floats: int = 0, reads: Reads = Reads.BEFORE, rows: float | None = None
    ) -> Operation:
        """Functions of single elements, softmax and norms without weights, and what they keep."""
        return Operation(
            path=path,
            kind="pointwise",
            unit=self.unit,
            rows=self.rows if rows is None else rows,
            reads=reads,
            in_block=self.in_block,
            kept=kept,
            kept_floats=floats,
        )

    def block_input(self, path: str, width: int) -> Operation:
        """The input of a block, which is all that a checkpointed block keeps."""
        return Operation(path=path, kind="block", unit=self.unit, rows=self.rows, outputs=width)

    def product(self, path: str, inputs: int, outputs: int, rows: float) -> Operation:
        """A matrix product with weights that are another operation's."""
        return Operation(path=path, kind="linear", unit=self.unit, rows=rows, flops=2 * inputs * outputs)
