"""The faces of `vargpt` about training and this machine: options in, one function called, facts out.

Heavy imports wait inside the functions, so that a mistake is told at once.
"""

import dataclasses
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from training.commands.options import (
    CHECK_FAILED,
    LOCAL_MLFLOW,
    AsJson,
    PointerFile,
    Spool,
    Tracking,
    print_result,
)

DRY_RUN = "--dry-run"


def train(
    context: typer.Context,
    stage: Annotated[str, typer.Argument(help="backbones, stage1, stage2, stage3 or joint")],
) -> None:
    """Train one stage; `vargpt train --help` lists what it takes.

    With `--dry-run` it is only checked and planned, without a GPU.
    """
    if DRY_RUN in context.args:
        from training.commands.plan import print_dry_run

        print_dry_run(stage, [argument for argument in context.args if argument != DRY_RUN])
        return
    command = [sys.executable, "-m", "training.launching", stage, *context.args]
    os.execv(command[0], command)


# Options that are not ours, --help among them, are the launcher's.
train.command_settings = {  # type: ignore[attr-defined]
    "context_settings": {"ignore_unknown_options": True, "allow_extra_args": True},
    "add_help_option": False,
}


def sync(
    spool: Spool = Path("spool"), tracking_uri: Tracking = LOCAL_MLFLOW, as_json: AsJson = False
) -> None:
    """Send MLflow what it could not take while training ran. Exit 1 if some of it stays."""
    from training.tracking.sender import sync_spools

    report = sync_spools(spool, tracking_uri)
    counts = {name: len(getattr(report, name)) for name in ("sent", "in_use", "unsent")}
    text = "{sent} journals sent, {in_use} of live runs left alone, {unsent} not sent".format(**counts)
    print_result(dataclasses.asdict(report), f"{text}: {report.reason}" if report.reason else text, as_json)
    if report.reason:
        raise typer.Exit(CHECK_FAILED)


def doctor(
    pointer: PointerFile = Path("data.dvc"), tracking_uri: Tracking = LOCAL_MLFLOW, as_json: AsJson = False
) -> None:
    """Say what this machine has and lacks. Exit 1 if something needed is missing."""
    from training.commands.doctor import check_machine

    findings = check_machine(pointer, tracking_uri)
    lines = [f"{'ok     ' if f.is_fine else 'MISSING'} {f.name}: {f.found}" for f in findings]
    lines += [f"        {finding.name}: {finding.advice}" for finding in findings if not finding.is_fine]
    print_result(
        {finding.name: dataclasses.asdict(finding) for finding in findings}, "\n".join(lines), as_json
    )
    if not all(finding.is_fine for finding in findings):
        raise typer.Exit(CHECK_FAILED)


def demo(
    out: Annotated[Path, typer.Option(help="Where reply and summary go.")] = Path("outputs/demo"),
    prompt: Annotated[str, typer.Option(help="What to ask.")] = "Draw a red seven on white and describe it.",
    tracking_uri: Tracking = LOCAL_MLFLOW,
    as_json: AsJson = False,
) -> None:
    """Everything once: data, pipeline, promotion, packaging, and one request that is answered over HTTP."""
    from training.commands.demo import Demo
    from training.commands.metrics_table import table
    from training.params import load_params

    # The pipeline's stages say `python`: the one that runs this.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    run = Demo(out, prompt, tracking_uri)
    summary = run.run()
    floors = load_params(Path("params.yaml")).promote.floors
    print_result(summary, "\n".join([table(run.metrics, floors), *run.closing_words()]), as_json)
