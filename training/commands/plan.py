"""The faces of `vargpt plan` and of a stage's dry run: what a stage will take, before a GPU is paid."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from training.commands.options import CHECK_FAILED, OF_DIGITS, AsJson, ParamsFile, Size, print_result

if TYPE_CHECKING:
    from training.planning.plan import Plan

Stage = Annotated[str, typer.Option(help="stage1, stage2, stage3 or joint.")]
NumGpus = Annotated[int, typer.Option(min=1, help="How many, each with one process.")]
KindOfGpu = Annotated[str, typer.Option(help="l4, rtx4090, l40s, a100, h100 or h200.")]
Engine = Annotated[str | None, typer.Option(help="ddp, zero1, zero2 or zero3; default: the recipe's.")]
Offload = Annotated[bool | None, typer.Option(help="Optimizer states in host memory.")]
Batch = Annotated[int | None, typer.Option(min=1, help="Samples a step; as many in all as before.")]
MicroBatch = Annotated[int | None, typer.Option(min=1, help="Samples a forward pass, unpacked.")]
PackTokens = Annotated[int | None, typer.Option(min=0, help="Positions of a packed row; 0: not packed.")]
LoraRank = Annotated[int | None, typer.Option(min=1, help="Adapters of this rank.")]
LoraModules = Annotated[str | None, typer.Option(help="What has adapters, by commas; default: the largest.")]
Words = Annotated[float | None, typer.Option(min=0, help="Of a mean sample.")]
Targets = Annotated[float | None, typer.Option(min=0, help="Words of these that are predicted.")]
Mfu = Annotated[float, typer.Option(min=0.01, max=1, help="Of the dense bfloat16 peak.")]
Disk = Annotated[float, typer.Option(min=0.001, help="GB/s of the disk of checkpoints.")]
Price = Annotated[float | None, typer.Option(min=0, help="Of one GPU for an hour.")]
Page = Annotated[Path | None, typer.Option(help="Write docs/capacity.md instead: 7b on one and many GPUs.")]


def plan(
    stage: Stage = "stage2",
    params: ParamsFile = Path("params.yaml"),
    size: Size = None,
    gpus: NumGpus = 1,
    gpu: KindOfGpu = "h100",
    engine: Engine = None,
    offload: Offload = None,
    batch: Batch = None,
    micro_batch: MicroBatch = None,
    pack_tokens: PackTokens = None,
    lora_rank: LoraRank = None,
    lora_modules: LoraModules = None,
    words: Words = None,
    targets: Targets = None,
    mfu: Mfu = 0.45,
    disk: Disk = 2.0,
    price: Price = None,
    page: Page = None,
    as_json: AsJson = False,
) -> None:
    """Say what a stage will take: memory, FLOPs, hours, bytes, cost. Exit 1 if it does not fit."""
    from training.planning.plan import Assumptions
    from training.planning.recipes import Changes, plan_changed
    from training.stages.stage_table import stage_named

    if page is not None:
        _write_page(page, params, as_json)
        return
    changes = Changes(
        engine=engine,
        offload=offload,
        batch=batch,
        micro_batch=micro_batch,
        pack_tokens=pack_tokens,
        lora_rank=lora_rank,
        lora_modules=lora_modules.split(",") if lora_modules else None,
        words=words,
        targets=targets,
    )
    assumptions = Assumptions(mfu, disk * 1e9, price)
    trains = stage_named(stage).trains
    _tell(plan_changed(stage, trains, params, size, changes, gpu, gpus, assumptions), as_json)


def print_dry_run(stage: str, arguments: Sequence[str]) -> None:
    """Check a stage's configuration and print its plan. Exit 1 if it does not fit.

    Args:
        arguments: Options, those of training.

    Raises:
        UserError: names what is wrong.
    """
    from training.params import load_params
    from training.planning.dry_run import dry_run
    from training.registry.stage_folders import StageFolders
    from training.stages.stage_table import stage_named

    parser = argparse.ArgumentParser(prog=f"vargpt train {stage} --dry-run")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="the parameters")
    parser.add_argument("--size", help="default: what the parameters say")
    parser.add_argument("--prepared", type=Path, default=Path("prepared"), help="folder of prepared data")
    parser.add_argument("--outputs", type=Path, default=Path("outputs"), help="folder of results")
    parser.add_argument("--nproc", type=int, default=1, help="processes of a node")
    parser.add_argument("--nodes", type=int, default=1, help="nodes")
    parser.add_argument("--gpu", default="h100", help="what each process runs on")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options, _ = parser.parse_known_args(arguments)
    known, params = stage_named(stage), load_params(options.params, options.size)
    folders = StageFolders(stage, options.prepared, options.outputs, options.params.parent / "data.dvc")
    planned = dry_run(
        known.trains,
        known.starts_from,
        params,
        folders,
        needs_index=params.size not in OF_DIGITS,
        gpu=options.gpu,
        processes=options.nproc * options.nodes,
    )
    _tell(planned, options.json)


def _tell(planned: "Plan", as_json: bool) -> None:
    from training.planning.report import facts, table

    print_result(facts(planned), table(planned), as_json)
    if not planned.fits:
        raise typer.Exit(CHECK_FAILED)


def _write_page(page: Path, params: Path, as_json: bool) -> None:
    from training.planning.capacity import capacity_page
    from training.stages.stage_table import STAGES

    trains = {name: stage.trains for name, stage in STAGES.items()}
    page.write_text(capacity_page(params, trains), encoding="utf-8")
    print_result({"page": str(page)}, f"written: {page}", as_json)
