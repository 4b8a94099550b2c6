"""Memory of one training process by part and kind, on its GPU and in its host's memory, under every engine.

Bytes of ZeRO are those of its paper (arXiv:1910.02054) with the buffers of DeepSpeed's defaults.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

from model.config import VargptConfig
from training.params import StageParams
from training.planning.activations import FLOAT32_BYTES, Precision, kept_activations
from training.planning.gradients import Part, held_operations, learning_test, part_of, trace
from training.planning.operations import Counts, Operation
from training.precision import BFLOAT16
from training.tiny.muon import LOW_RANK_LAYER

BFLOAT16_BYTES = 2
MOMENT_BYTES = 4
# Elements of DeepSpeed's buffers: gradients on their way, two of them; gathered weights (ZeRO-3); and
# elements that are updated at a time there.
BUCKET_ELEMENTS = 200_000_000
GATHERED_ELEMENTS = 1_000_000_000
UPDATED_ELEMENTS = 1_000_000_000


class Kind(StrEnum):
    """What memory holds."""

    WEIGHTS = "weights"
    """In the type of computing; those that learn only where there is a copy in float32 besides."""
    MASTERS = "float32 weights"
    GRADIENTS = "gradients"
    OPTIMIZER = "optimizer states"
    AVERAGE = "average of weights"
    ACTIVATIONS = "activations"


@dataclass(frozen=True)
class Sizes:
    """Parameters by part.

    Args:
        matrices: Of those that learn, weights of linear maps, of which Muon keeps one state.
    """

    held: dict[Part, int]
    learning: dict[Part, int]
    matrices: dict[Part, int]

    @property
    def num_held(self) -> int:
        return sum(self.held.values())

    @property
    def num_learning(self) -> int:
        return sum(self.learning.values())


@dataclass(frozen=True)
class Memory:
    """Bytes of one process.

    Args:
        by_kind: On the GPU, by kind and part.
        working: On the GPU, of single operations of the backward pass, at most.
        update: On the GPU, of the optimizer's step, when activations are gone.
        buffers: On the GPU, for what processes send each other.
        start: On the GPU before the first step: the whole model, which an engine shards only there.
        host: In host memory, by what it is.
    """

    by_kind: dict[Kind, dict[Part, float]]
    working: float
    update: float
    buffers: float
    start: float
    host: dict[str, float]

    @property
    def peak(self) -> float:
        """The most that tensors take on the GPU at a time."""
        lasting = sum(sum(self.by_kind[kind].values()) for kind in Kind if kind is not Kind.ACTIVATIONS)
        backward = sum(self.by_kind[Kind.ACTIVATIONS].values()) + self.working
        return max(self.start, lasting + self.buffers + max(backward, self.update))


@dataclass(frozen=True)
class Layout:
    """How weights are kept.

    Args:
        engine: As in params.yaml.
        processes: That share the state.
        compute_bytes: Of a number in the type of computing.
        stored_bytes: Of a number of the model that the stage starts from.
    """

    engine: str
    offload: bool
    processes: int
    compute_bytes: int
    stored_bytes: int

    @property
    def shards(self) -> bool:
        return self.engine != "ddp"

    @property
    def precision(self) -> Precision:
        """In which types activations are."""
        return Precision(self.compute_bytes, casts=not self.shards and self.compute_bytes < FLOAT32_BYTES)


def layout_of(stage: StageParams, precision: str, processes: int, stored_bytes: int) -> Layout:
    """The layout of a stage under its engine."""
    compute = BFLOAT16_BYTES if precision == BFLOAT16 else FLOAT32_BYTES
    return Layout(stage.engine, stage.offload, processes, compute, stored_bytes)


def sizes_of(config: VargptConfig, trains: Iterable[str], stage: StageParams) -> Sizes:
    """Parameters that a process holds, and which of them learn. UserError for LoRA of no module."""
    learns = learning_test(trains, stage.lora)
    sizes = Sizes(*({part: 0 for part in Part} for _ in range(3)))
    for operation in held_operations(config, stage.lora, encodes=not stage.cached_codes):
        part = part_of(operation.path)
        sizes.held[part] += operation.parameters
        if learns(operation.path):
            sizes.learning[part] += operation.parameters
            sizes.matrices[part] += _matrix_elements(operation)
    return sizes


def plan_memory(
    config: VargptConfig, trains: Iterable[str], stage: StageParams, layout: Layout, counts: Counts
) -> Memory:
    """Memory of a process whose micro-batches have so many units."""
    trains = tuple(trains)
    sizes = sizes_of(config, trains, stage)
    traced = trace(config, trains, stage.lora, counts, encodes=not stage.cached_codes)
    kept = kept_activations(
        traced, counts, layout.precision, checkpoint_activations=stage.checkpoint_activations
    )
    by_kind = {
        Kind.WEIGHTS: _each(lambda part: _weight_bytes(part, sizes, layout)),
        Kind.MASTERS: _each(lambda part: _master_bytes(layout) * sizes.learning[part]),
        Kind.GRADIENTS: _each(lambda part: _gradient_bytes(layout) * sizes.learning[part]),
        Kind.OPTIMIZER: _each(lambda part: _on_gpu(layout) * optimizer_bytes(part, sizes, stage)),
        Kind.AVERAGE: _each(lambda part: _on_gpu(layout) * average_bytes(stage) * sizes.learning[part]),
        Kind.ACTIVATIONS: dict(kept.by_part),
    }
    learning = sizes.num_learning
    return Memory(
        by_kind,
        working=kept.largest_block + kept.largest_operation,
        update=_update_bytes(learning, layout),
        buffers=_buffer_bytes(sizes, layout),
        start=layout.compute_bytes * sizes.num_held,
        host=_host_bytes(sizes, stage, layout),
    )


def optimizer_bytes(part: Part, sizes: Sizes, stage: StageParams) -> float:
    """Of all optimizer states of a part together: two moments of AdamW, or one of Muon for a matrix."""
    with_one = sizes.matrices[part] if stage.muon_lr else 0
    return MOMENT_BYTES * (2 * sizes.learning[part] - with_one)


def average_bytes(stage: StageParams) -> int:
    """Of one number of the average of weights; 0 where there is none."""
    return FLOAT32_BYTES if stage.ema else 0


def checkpoint_bytes(sizes: Sizes, stage: StageParams) -> float:
    """Of one checkpoint to resume from, the parts of all processes together: what learns, in float32."""
    weights = (FLOAT32_BYTES + average_bytes(stage)) * sizes.num_learning
    return weights + sum(optimizer_bytes(part, sizes, stage) for part in Part)


def _each(size: Callable[[Part], float]) -> dict[Part, float]:
    return {part: size(part) for part in Part}


def _matrix_elements(operation: Operation) -> int:
    is_matrix = operation.kind in ("linear", "convolution") and not operation.path.endswith(LOW_RANK_LAYER)
    return operation.flops // 2 if is_matrix else 0


def _weight_bytes(part: Part, sizes: Sizes, layout: Layout) -> float:
    held, frozen = sizes.held[part], sizes.held[part] - sizes.learning[part]
    if part in (Part.TOKENIZER_ENCODER, Part.TOKENIZER_DECODER):
        # Which codes it makes depends on its last bits, so engines leave it alone.
        return FLOAT32_BYTES * held
    if not layout.shards:
        return layout.stored_bytes * frozen
    share = layout.processes if layout.engine == "zero3" else 1
    return layout.compute_bytes * held / share


def _on_gpu(layout: Layout) -> float:
    """The share of a state that is on one GPU."""
    if not layout.shards:
        return 1.0
    return 0.0 if layout.offload else 1 / layout.processes


def _master_bytes(layout: Layout) -> float:
    return FLOAT32_BYTES * _on_gpu(layout)


def _gradient_bytes(layout: Layout) -> float:
    """Of the gradient of one number."""
    if not layout.shards:
        return FLOAT32_BYTES
    if layout.engine == "zero1":
        return layout.compute_bytes
    return 0.0 if layout.offload else FLOAT32_BYTES / layout.processes


def _update_bytes(learning: int, layout: Layout) -> float:
    """Gradients in float32, of what a process updates at a time."""
    if not layout.shards or layout.offload:
        return 0.0
    updated = learning / layout.processes
    return FLOAT32_BYTES * (min(updated, UPDATED_ELEMENTS) if layout.engine == "zero3" else updated)


def _buffer_bytes(sizes: Sizes, layout: Layout) -> float:
    if not layout.shards:
        # Data parallel copies gradients into buckets.
        return FLOAT32_BYTES * sizes.num_learning if layout.processes > 1 else 0.0
    buckets = 2 * min(BUCKET_ELEMENTS, sizes.num_learning)
    gathered = min(GATHERED_ELEMENTS, sizes.num_held) if layout.engine == "zero3" else 0
    return layout.compute_bytes * (buckets + gathered)


def _host_bytes(sizes: Sizes, stage: StageParams, layout: Layout) -> dict[str, float]:
    host = {
        "model before it is on the GPU": float(layout.stored_bytes * sizes.num_held),
        "copy of a checkpoint": checkpoint_bytes(sizes, stage) / layout.processes,
    }
    if layout.offload:
        gradients = FLOAT32_BYTES * sizes.num_learning
        host["optimizer states, weights and gradients"] = (
            checkpoint_bytes(sizes, stage) + gradients
        ) / layout.processes
    return host
