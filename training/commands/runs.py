"""The faces of `vargpt` about runs that were recorded: options in, one function called, facts out."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from training.commands.options import (
    CHECK_FAILED,
    LOCAL_MLFLOW,
    AsJson,
    Outputs,
    PointerFile,
    Prepared,
    Tracking,
    print_result,
)

RunId = Annotated[str, typer.Argument(help="the run's id in MLflow")]


def rerun(
    run: RunId,
    any_code: Annotated[bool, typer.Option("--any-code", help="with the code as it is now")] = False,
    prepared: Prepared = Path("prepared"),
    outputs: Outputs = Path("outputs"),
    pointer: PointerFile = Path("data.dvc"),
    tracking_uri: Tracking = LOCAL_MLFLOW,
    as_json: AsJson = False,
) -> None:
    """Repeat a run of a stage from its record in MLflow. Exit 1 if other weights come out."""
    from training.registry.stage_folders import StageFolders
    from training.runs.rerun import rerun as repeat

    found = repeat(run, tracking_uri, StageFolders("rerun", prepared, outputs, pointer), any_code)
    same = "the same weights" if found.is_identical else "other weights"
    text = f"{found.stage} of run {found.run_id} ended with {same}: {found.weights_sha256}"
    print_result(dataclasses.asdict(found) | {"is_identical": found.is_identical}, text, as_json)
    if not found.is_identical:
        raise typer.Exit(CHECK_FAILED)


def replay(
    run: RunId,
    step: Annotated[int, typer.Argument(help="as in the log, counted from 0")],
    prepared: Prepared = Path("prepared"),
    outputs: Outputs = Path("outputs"),
    pointer: PointerFile = Path("data.dvc"),
    tracking_uri: Tracking = LOCAL_MLFLOW,
    as_json: AsJson = False,
) -> None:
    """Compute the losses of a step's samples again, one by one, largest first."""
    from training.registry.stage_folders import StageFolders
    from training.runs.replay import replay as compute

    found = compute(run, step, tracking_uri, StageFolders("replay", prepared, outputs, pointer))
    rows = sorted(found.losses.items(), key=lambda pair: -max(pair[1].values(), default=0.0))
    lines = [f"step {step} of run {found.run_id}, weights of step {found.weights_of_step}"]
    for record, losses in rows:
        shown = "  ".join(f"{name} {losses[name]:.3f}" for name in ("text", "image") if name in losses)
        lines.append(f"{record}  {shown}")
    print_result(dataclasses.asdict(found), "\n".join(lines), as_json)
