"""The plan of a stage: memory, FLOPs, time, bytes and cost on so many GPUs of one kind."""

from collections.abc import Sequence
from dataclasses import dataclass

from model.config import VargptConfig
from training.params import Params, StageParams
from training.planning.activations import FLOAT32_BYTES
from training.planning.flops import Flops, count_flops, total_of
from training.planning.gpus import GPUS_OF_A_NODE, HOST_BANDWIDTH, NODE_BANDWIDTH, Gpu
from training.planning.gradients import Part, trace
from training.planning.memory import (
    BFLOAT16_BYTES,
    Layout,
    Memory,
    Sizes,
    checkpoint_bytes,
    layout_of,
    plan_memory,
    sizes_of,
)
from training.planning.workload import Sample, Workload, bytes_of_sample, sample_of, workload_of

HOUR = 3600.0


@dataclass(frozen=True)
class Assumptions:
    """What a plan cannot know.

    Args:
        mfu: Model FLOPs utilisation: model FLOPs over time and the GPU's dense bfloat16 peak.
        disk: Bytes a second that all processes together write to where checkpoints are.
        price: Of an hour of one GPU, in any currency; None for no cost.
    """

    mfu: float = 0.45
    disk: float = 2e9
    price: float | None = None


@dataclass(frozen=True)
class Plan:
    """What a stage takes on `gpus` GPUs of one kind; bytes, seconds, FLOPs.

    Args:
        sizes: Of what a process holds.
        published: Parameters of the whole model, by part.
        flops: Of one step, of all GPUs together, by part.
    """

    stage: str
    trains: tuple[str, ...]
    recipe: StageParams
    config: VargptConfig
    gpu: Gpu
    gpus: int
    layout: Layout
    assumptions: Assumptions
    workload: Workload
    sizes: Sizes
    published: dict[Part, int]
    memory: Memory
    flops: dict[Part, Flops]

    @property
    def fits(self) -> bool:
        """Whether every GPU has room for its process."""
        return self.gpu.fits(self.memory.peak)

    @property
    def needed(self) -> float:
        """Bytes of GPU memory that a process needs."""
        return self.gpu.needed(self.memory.peak)

    @property
    def step_seconds(self) -> float:
        """Of one step at the assumed utilisation, or as long as its bytes are on their way."""
        return max(self.computing_seconds, self.network_bytes / self.network_limit)

    @property
    def computing_seconds(self) -> float:
        """Of one step at the assumed utilisation, whatever the network does."""
        return total_of(self.flops).model / (self.gpus * self.gpu.flops * self.assumptions.mfu)

    @property
    def mfu(self) -> float:
        """The utilisation that is left where the network is slower than the GPUs."""
        return self.assumptions.mfu * self.computing_seconds / self.step_seconds

    @property
    def hours(self) -> float:
        """Of all steps."""
        return self.recipe.steps * self.step_seconds / HOUR

    @property
    def cost(self) -> float | None:
        """Of all GPUs for these hours."""
        price = self.assumptions.price
        return None if price is None else price * self.gpus * self.hours

    @property
    def samples_per_second(self) -> float:
        """Of all GPUs together."""
        return self.recipe.batch / self.step_seconds

    @property
    def checkpoint_bytes(self) -> float:
        """Of one checkpoint to resume from."""
        return checkpoint_bytes(self.sizes, self.recipe)

    @property
    def model_bytes(self) -> float:
        """Of the model that the stage publishes."""
        tokenizer = self.published[Part.TOKENIZER_ENCODER] + self.published[Part.TOKENIZER_DECODER]
        rest = sum(self.published.values()) - tokenizer
        return self.layout.stored_bytes * rest + FLOAT32_BYTES * tokenizer

    @property
    def checkpoint_seconds(self) -> float:
        """Until a checkpoint is on the disk; training goes on meanwhile."""
        return self.checkpoint_bytes / self.assumptions.disk

    @property
    def stall_seconds(self) -> float:
        """That training waits for a checkpoint: the copy to host memory."""
        return self.checkpoint_bytes / self.gpus / HOST_BANDWIDTH

    @property
    def data_bytes_per_second(self) -> float:
        """That all GPUs together read."""
        size = bytes_of_sample(self.config, self.workload.sample, cached_codes=self.recipe.cached_codes)
        return self.samples_per_second * size

    @property
    def network_bytes(self) -> float:
        """That one GPU sends in a step, and as much receives."""
        return network_bytes(self.layout, self.sizes, self.workload.passes)

    @property
    def network_limit(self) -> float:
        """Bytes a second that one GPU can send."""
        limit = self.gpu.link_bandwidth
        return limit if self.gpus <= GPUS_OF_A_NODE else min(limit, NODE_BANDWIDTH)


def network_bytes(layout: Layout, sizes: Sizes, passes: int) -> float:
    """Bytes that one process sends in a step: of ring collectives, (N - 1) / N of what is exchanged.

    Args:
        passes: Micro-batches. ZeRO-2 and 3 exchange gradients of each, ZeRO-3 gathers weights twice for each.
    """
    learning, width = sizes.num_learning, layout.compute_bytes
    exchanged = {
        "ddp": 2 * FLOAT32_BYTES * learning,
        "zero1": (width + width) * learning,
        "zero2": (passes * width + width) * learning,
        "zero3": passes * width * (2 * sizes.num_held + learning),
    }[layout.engine]
    return exchanged * (layout.processes - 1) / layout.processes


def plan_stage(
    name: str,
    trains: Sequence[str],
    params: Params,
    config: VargptConfig,
    gpu: Gpu,
    gpus: int,
    assumptions: Assumptions,
    sample: Sample | None = None,
) -> Plan:
    """Plan a stage of params.yaml.

    Args:
        trains: Paths of the modules that learn.
        sample: The mean sample; default: that of the recipe's datasets.

    Raises:
        UserError: for a recipe that cannot work.
    """
    recipe = getattr(params, name)
    workload = workload_of(config, recipe, sample or sample_of(recipe.mixture), gpus)
    layout = layout_of(recipe, params.precision, gpus, stored_bytes(params))
    traced = trace(config, trains, recipe.lora, workload.step, encodes=not recipe.cached_codes)
    whole = recipe.model_copy(update={"cached_codes": False, "lora": None})
    step = {unit: gpus * number for unit, number in workload.step.items()}
    return Plan(
        name,
        tuple(trains),
        recipe,
        config,
        gpu,
        gpus,
        layout,
        assumptions,
        workload,
        sizes_of(config, trains, recipe),
        sizes_of(config, trains, whole).held,
        plan_memory(config, trains, recipe, layout, workload.micro_batch),
        count_flops(traced, step, checkpoint_activations=recipe.checkpoint_activations),
    )


def stored_bytes(params: Params) -> int:
    """Of a number in a model's folder: imported weights are in bfloat16, those trained here in float32."""
    return BFLOAT16_BYTES if any(params.weights.model_dump().values()) else FLOAT32_BYTES
