"""The page docs/capacity.md: plans of the published size on many GPUs and on small ones, as tables of
Markdown.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from model.config import preset
from training.params import Params, load_params
from training.planning.gpus import GPUS, Gpu
from training.planning.plan import Assumptions, Plan, plan_stage
from training.planning.recipes import LORA_RANK, Changes, changed_params
from training.planning.report import GB, gigabytes

Trains = Mapping[str, Sequence[str]]

SIZE, STAGES, NUMBERS = "7b", ("stage1", "stage2", "stage3"), (1, 8, 64, 512)
GPU = GPUS["h100"]
# One GPU of each memory, by what its maker calls that.
SMALL = {"24 GB": "rtx4090", "48 GB": "l40s", "80 GB": "h100", "141 GB": "h200"}
# The row of one sample of the largest length, on one GPU.
ROW = 2048
WAYS = {
    "full": Changes(engine="zero2", pack_tokens=ROW),
    f"LoRA, rank {LORA_RANK}": Changes(engine="zero2", pack_tokens=ROW, lora_rank=LORA_RANK),
    "full, ZeRO-2 with offload": Changes(engine="zero2", pack_tokens=ROW, offload=True),
}


PAGE = """\
# What training takes

Made by `vargpt plan --page docs/capacity.md` from params.yaml; a test holds it to that. For one case part by
part, also with other data, engines or GPUs: `vargpt plan --size 7b --stage stage2 --gpus 8 --gpu h100`.

Recipes are those of size {size}. Hours are at {mfu} MFU of the dense bfloat16 peak, {tflops} TFLOP/s of
an {gpu}: an assumption, not a measurement. Memory is what a process needs at its peak, with what CUDA and its
allocator take, in GB of 10^9 bytes. Lengths of samples are assumed as well
(training/planning/workload.py); `--words` and `--targets` replace them.

## The three stages on {gpu} GPUs
A batch grows to one sample for each GPU where it is smaller, and steps become fewer. MFU is less than assumed
where the network is slower than the GPUs: gradients and weights of ZeRO for few samples.
With offload, what processors take to update weights comes on top.

{stages}

## What fits on one GPU
Rows of {row} positions, the longest sample, with activations computed again. Each cell says what is needed,
in bold where the GPU has it (a maker's GB are about 2^30 bytes). Host memory holds the model until it is on
the GPU, a copy of a checkpoint and, with offload, optimizer states.

{small}

## The GPUs
{gpus}
"""


def capacity_page(params_file: Path, trains: Trains) -> str:
    """The text of the page, given what learns in each stage. UserError for parameters that are wrong."""
    params, assumptions = load_params(params_file, SIZE), Assumptions()
    return PAGE.format(
        size=SIZE,
        mfu=f"{assumptions.mfu:.0%}",
        tflops=f"{GPU.flops / 1e12:.0f}",
        gpu=GPU.name.upper(),
        row=ROW,
        stages="\n".join(_stages(params, trains, assumptions)),
        small="\n".join(_small(params, trains, assumptions)),
        gpus="\n".join(_gpus()),
    )


def _stages(params: Params, trains: Trains, assumptions: Assumptions) -> Iterator[str]:
    head = (
        "stage",
        "GPUs",
        "engine",
        "batch",
        "micro-batches",
        "memory",
        "fits",
        "MFU",
        "step, s",
        "tokens/s",
    )
    yield from _heading((*head, "pictures/s", "hours", "GPU hours", "checkpoint, GB", "sent, GB/s"))
    for stage in STAGES:
        for number in NUMBERS:
            batch = max(getattr(params, stage).batch, number)
            changes = Changes(batch=batch)
            plan = _planned(params, stage, trains, changes, GPU, number, assumptions)
            yield _row(_stage_cells(plan, ""))
            if not plan.fits:
                offloaded = _planned(
                    params, stage, trains, Changes(batch=batch, offload=True), GPU, number, assumptions
                )
                yield _row(_stage_cells(offloaded, " + offload"))


def _stage_cells(plan: Plan, way: str) -> Sequence[str]:
    sample = plan.workload.sample
    return (
        plan.stage,
        str(plan.gpus),
        plan.recipe.engine + way,
        str(plan.recipe.batch),
        str(plan.workload.passes),
        gigabytes(plan.needed),
        "yes" if plan.fits else "no",
        f"{plan.mfu:.0%}",
        f"{plan.step_seconds:.2f}",
        f"{plan.samples_per_second * plan.workload.positions:,.0f}",
        f"{plan.samples_per_second * (sample.pictures + sample.drawings):,.0f}",
        f"{plan.hours:,.2f}",
        f"{plan.hours * plan.gpus:,.0f}",
        gigabytes(plan.checkpoint_bytes),
        f"{plan.network_bytes / plan.step_seconds / GB:.1f}",
    )


def _small(params: Params, trains: Trains, assumptions: Assumptions) -> Iterator[str]:
    names = (f"{label}, {gpu}" for label, gpu in SMALL.items())
    yield from _heading(("stage", "way", "learning, M", *names, "host memory"))
    small = [GPUS[name] for name in SMALL.values()]
    for stage in STAGES:
        for way, changes in WAYS.items():
            first = _planned(params, stage, trains, changes, small[0], 1, assumptions)
            plans = [replace(first, gpu=gpu) for gpu in small]
            needed = (f"**{gigabytes(p.needed)}**" if p.fits else gigabytes(p.needed) for p in plans)
            learning = f"{first.sizes.num_learning / 1e6:,.0f}"
            yield _row((stage, way, learning, *needed, gigabytes(sum(first.memory.host.values()))))


def _gpus() -> Iterator[str]:
    yield from _heading(("GPU", "memory, GB", "TFLOP/s", "memory, GB/s", "to its node, GB/s", "source"))
    for gpu in GPUS.values():
        figures = (gpu.memory / GB, gpu.flops / 1e12, gpu.memory_bandwidth / GB, gpu.link_bandwidth / GB)
        yield _row((gpu.name, *(f"{figure:,.0f}" for figure in figures), gpu.source))


def _planned(
    params: Params,
    stage: str,
    trains: Trains,
    changes: Changes,
    gpu: Gpu,
    gpus: int,
    assumptions: Assumptions,
) -> Plan:
    changed = changed_params(params, stage, changes)
    return plan_stage(stage, trains[stage], changed, preset(changed.preset), gpu, gpus, assumptions)


def _heading(names: Sequence[str]) -> Iterator[str]:
    yield _row(names)
    yield _row(["---"] * len(names))


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
