"""A plan as facts for a program and as a table for a reader."""

from collections.abc import Iterable, Sequence
from typing import Any

from training.planning.flops import Flops, total_of
from training.planning.gradients import Part
from training.planning.memory import Kind
from training.planning.operations import Unit
from training.planning.plan import Plan

GB, TERA = 1e9, 1e12


def facts(plan: Plan) -> dict[str, Any]:
    """All figures by name: bytes, FLOPs, seconds."""
    memory, total = plan.memory, total_of(plan.flops)
    return {
        "stage": plan.stage,
        "gpus": plan.gpus,
        "gpu": plan.gpu.name,
        "engine": plan.recipe.engine,
        "offload": plan.recipe.offload,
        "steps": plan.recipe.steps,
        "batch": plan.recipe.batch,
        "learns": learning_modules(plan),
        "parameters": {part.value: plan.sizes.held[part] for part in Part},
        "learning_parameters": {part.value: plan.sizes.learning[part] for part in Part},
        "memory": {
            "by_kind": {kind.value: _named(memory.by_kind[kind]) for kind in Kind},
            "working": memory.working,
            "update": memory.update,
            "buffers": memory.buffers,
            "start": memory.start,
            "peak": memory.peak,
            "needed": plan.needed,
            "gpu": plan.gpu.memory,
            "fits": plan.fits,
            "host": memory.host,
        },
        "step_flops": {part.value: vars(plan.flops[part]) for part in Part},
        "step_model_flops": total.model,
        "step_hardware_flops": total.hardware,
        "mfu": plan.mfu,
        "peak_flops": plan.gpu.flops,
        "micro_batches": plan.workload.passes,
        "positions_of_a_sample": plan.workload.positions,
        "step_seconds": plan.step_seconds,
        "samples_per_second": plan.samples_per_second,
        "tokens_per_second": plan.samples_per_second * plan.workload.positions,
        "pictures_per_second": plan.samples_per_second * pictures_of_sample(plan),
        "hours": plan.hours,
        "gpu_hours": plan.hours * plan.gpus,
        "cost": plan.cost,
        "checkpoint_bytes": plan.checkpoint_bytes,
        "checkpoint_seconds": plan.checkpoint_seconds,
        "checkpoint_stall_seconds": plan.stall_seconds,
        "model_bytes": plan.model_bytes,
        "data_bytes_per_second": plan.data_bytes_per_second,
        "network_bytes_per_second": plan.network_bytes / plan.step_seconds,
        "network_limit": plan.network_limit,
    }


def table(plan: Plan) -> str:
    """The same as text."""
    return "\n\n".join([_head(plan), _parts(plan), _memory(plan), _time(plan)])


def learning_modules(plan: Plan) -> str:
    """What learns, in words."""
    lora = plan.recipe.lora
    if lora is None:
        return ", ".join(plan.trains)
    return f"{', '.join(plan.trains)}; adapters of rank {lora.rank} in place of {', '.join(lora.modules)}"


def pictures_of_sample(plan: Plan) -> float:
    """Pictures read and drawn."""
    return plan.workload.sample.pictures + plan.workload.sample.drawings


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows as columns, the first one on the left, the others on the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def gigabytes(size: float) -> str:
    """Bytes in GB, of 10^9."""
    return f"{size / GB:.2f}" if size < 10 * GB else f"{size / GB:.1f}"


def _named(by_part: dict[Part, float]) -> dict[str, float]:
    return {part.value: size for part, size in by_part.items()}


def _head(plan: Plan) -> str:
    sample, recipe = plan.workload.sample, plan.recipe
    packed = f"up to {recipe.micro_batch} samples"
    if recipe.pack_tokens:
        packed = f"packed to {recipe.pack_tokens} positions"
    micro = plan.workload.micro_batch[Unit.POSITION] / plan.workload.positions
    return "\n".join(
        [
            f"{plan.stage} on {plan.gpus} x {plan.gpu.name}, engine {recipe.engine}"
            f"{' with optimizer states in host memory' if recipe.offload else ''}",
            f"learns: {learning_modules(plan)}",
            f"frozen: {', '.join(part.value for part in Part if not plan.sizes.learning[part])}",
            f"{recipe.steps} steps of {recipe.batch} samples; a micro-batch is {packed}"
            f" ({micro:.1f} samples of {plan.workload.positions:.0f} positions),"
            f" {plan.workload.passes} a step",
            f"a sample: {sample.words:.0f} words, {sample.targets:.0f} of them predicted,"
            f" {sample.pictures:.2f} pictures read, {sample.drawings:.2f} drawn",
        ]
    )


def _parts(plan: Plan) -> str:
    shown = [part for part in Part if plan.sizes.held[part] or plan.flops[part].forward]
    rows = [("", "parameters", "learning", "forward", "to inputs", "to weights", "again")]
    for part in shown:
        held, learning = plan.sizes.held[part], plan.sizes.learning[part]
        rows.append((part.value, _millions(held), _millions(learning), *_flops(plan.flops[part])))
    sizes = (_millions(plan.sizes.num_held), _millions(plan.sizes.num_learning))
    rows.append(("all", *sizes, *_flops(total_of(plan.flops))))
    return "parameters in millions, TFLOP of a step by pass\n" + aligned(rows)


def _memory(plan: Plan) -> str:
    memory = plan.memory
    shown = [part for part in Part if any(memory.by_kind[kind][part] for kind in Kind)]
    rows = [("", *(kind.value for kind in Kind))]
    rows += [(part.value, *(gigabytes(memory.by_kind[kind][part]) for kind in Kind)) for part in shown]
    rows.append(("all", *(gigabytes(sum(memory.by_kind[kind].values())) for kind in Kind)))
    verdict = "fits" if plan.fits else "DOES NOT FIT"
    lines = [
        f"working memory {gigabytes(memory.working)}, of the update {gigabytes(memory.update)},"
        f" buffers {gigabytes(memory.buffers)}, the whole model at the start {gigabytes(memory.start)}",
        f"peak of tensors {gigabytes(memory.peak)}; with what CUDA and its allocator take"
        f" {gigabytes(plan.needed)} of {gigabytes(plan.gpu.memory)}: {verdict}",
        "host memory: " + ", ".join(f"{name} {gigabytes(size)}" for name, size in memory.host.items()),
    ]
    return "\n".join(["memory of one process in GB", aligned(rows), *lines])


def _time(plan: Plan) -> str:
    total, gpu = total_of(plan.flops), plan.gpu
    pictures = plan.samples_per_second * pictures_of_sample(plan)
    rows: list[Iterable[str]] = [
        (
            "step",
            f"{plan.step_seconds:.2f} s at {plan.mfu:.0%} of {gpu.flops / TERA:.0f} TFLOP/s",
        ),
        ("computed over needed", f"{total.hardware / max(total.model, 1):.2f}"),
        ("samples a second", f"{plan.samples_per_second:.1f}"),
        ("tokens a second", f"{plan.samples_per_second * plan.workload.positions:,.0f}"),
        ("pictures a second", f"{pictures:.1f}"),
        ("hours", f"{plan.hours:.1f}, of GPUs {plan.hours * plan.gpus:,.0f}"),
    ]
    if plan.cost is not None:
        rows.append(("cost", f"{plan.cost:,.0f}"))
    rows += [
        (
            "checkpoint",
            f"{gigabytes(plan.checkpoint_bytes)} GB, {plan.checkpoint_seconds:.0f} s to write,"
            f" training waits {plan.stall_seconds:.1f} s",
        ),
        ("published model", f"{gigabytes(plan.model_bytes)} GB"),
        ("data read", f"{plan.data_bytes_per_second / 1e6:.1f} MB/s"),
        (
            "sent by each GPU",
            f"{plan.network_bytes / plan.step_seconds / GB:.2f} GB/s of {plan.network_limit / GB:.0f}",
        ),
    ]
    return "\n".join(f"{name:<22}{value}" for name, value in rows)


def _millions(number: int) -> str:
    return f"{number / 1e6:,.1f}"


def _flops(flops: Flops) -> tuple[str, ...]:
    passes = (flops.forward, flops.backward_activations, flops.backward_weights, flops.recomputed)
    return tuple(f"{number / TERA:,.1f}" for number in passes)
