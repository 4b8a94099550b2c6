"""Commands about jobs in a cluster (submit, jobs, logs, cancel), and `run`, a stage wherever params.yaml
says.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from model.errors import UserError
from training.commands.options import AsJson, ParamsFile, Size, print_result

if TYPE_CHECKING:
    from training.submission.submit import Submitter

# What a stage of the pipeline runs on this machine.
LOCALLY = {
    "prepare": ("training.commands", "data", "prepare"),
    "backbones": ("training.launching", "backbones"),
    "encode": ("training.commands", "data", "encode"),
    "stage1": ("training.launching", "stage1"),
    "stage2": ("training.launching", "stage2"),
    "stage3": ("training.launching", "stage3"),
    "joint": ("training.launching", "joint"),
    "share": ("training.commands", "share"),
    "evaluate": ("training.commands", "evaluate"),
}
# Those that several processes do together. Backbones start their own; an import is one process.
SHARED = ("encode", "stage1", "stage2", "stage3", "joint")
SUBMIT = ("training.commands", "submit")
APIS = ("pytorchjob", "trainjob")
NAMESPACE_VARIABLE = "VARGPT_NAMESPACE"

Stage = Annotated[
    str, typer.Argument(help=f"{', '.join(LOCALLY)}; in a cluster also release: promote, package")
]
Name = Annotated[str, typer.Argument(help="A job, as `vargpt jobs` lists it.")]
Namespace = Annotated[
    str | None, typer.Option(envvar=NAMESPACE_VARIABLE, help="Default: that of the kubeconfig's context.")
]
ApiOption = Annotated[str, typer.Option(envvar="VARGPT_API", help="pytorchjob, or trainjob for Trainer v2.")]
Queue = Annotated[str | None, typer.Option(envvar="VARGPT_QUEUE", help="LocalQueue of Kueue that admits it.")]
Priority = Annotated[
    str | None, typer.Option(envvar="VARGPT_PRIORITY", help="WorkloadPriorityClass of Kueue, with --queue.")
]


def submit(
    stage: Stage,
    wait: Annotated[bool, typer.Option("--wait", help="Follow it to its end and fetch its results.")] = False,
    api: ApiOption = "pytorchjob",
    params: ParamsFile = Path("params.yaml"),
    size: Size = None,
    namespace: Namespace = None,
    queue: Queue = None,
    priority: Priority = None,
    as_json: AsJson = False,
) -> None:
    """Run a stage as a job of a cluster; the same work is found there, not done again.

    Exit 0 done, 2 the user's mistake, 138 failed otherwise, 143 no longer waited for: the job goes on.
    """
    if api not in APIS:
        raise UserError(f"--api must be one of {', '.join(APIS)}, got {api!r}")
    if priority and not queue:
        raise UserError("--priority decides between jobs of a queue: give --queue as well")
    submitter = _submitter(namespace)
    from training.submission.manifests import make_submission

    submission = make_submission(
        stage,
        Path(),
        params,
        size,
        api="trainjob" if api == "trainjob" else "pytorchjob",
        namespace=submitter.server.namespace,
        queue=queue,
        priority=priority,
    )
    name = submission.identity.name
    if not wait:
        is_new = submitter.submit(submission).is_new
        print_result({"job": name, "is_new": is_new}, f"follow it: vargpt logs {name}", as_json)
        return
    from training.launching.exit_codes import STOPPED

    try:
        outcome = submitter.run(submission)
    except KeyboardInterrupt:
        typer.echo(f"{name} goes on; follow it: vargpt logs {name}, end it: vargpt cancel {name}", err=True)
        raise typer.Exit(STOPPED) from None
    facts = {"job": name, "exit_code": outcome.exit_code, "reason": outcome.reason}
    print_result(facts, f"{name}: {outcome.reason or 'done'}", as_json)
    raise typer.Exit(outcome.exit_code)


def jobs(namespace: Namespace = None, as_json: AsJson = False) -> None:
    """List the jobs of stages in the cluster, the oldest first."""
    from training.submission.api import ApiServer
    from training.submission.follow import describe
    from training.submission.jobs import Jobs

    rows = [describe(kind, job) for kind, job in Jobs(ApiServer(namespace)).all_of_stages()]
    lines = [
        f"{row['created']}  {row['phase']:10} {row['kind']:10} {row['name']}  {row['queue']}" for row in rows
    ]
    print_result({"jobs": rows}, "\n".join(line.rstrip() for line in lines) or "no jobs", as_json)


def logs(
    name: Name,
    tail: Annotated[int | None, typer.Option(min=0, help="Lines from before; default: all.")] = None,
    namespace: Namespace = None,
) -> None:
    """Follow a job to its end: phases, reasons why pods wait, log. Exits as `vargpt submit --wait` does."""
    from training.submission.api import ApiServer
    from training.submission.follow import JobFollower
    from training.submission.jobs import Jobs

    found = Jobs(ApiServer(namespace))
    kind, _ = found.find_any(name)
    outcome = JobFollower(found, kind, name, typer.echo, tail).to_end()
    typer.echo(f"{name}: {outcome.reason or 'done'}")
    raise typer.Exit(outcome.exit_code)


def cancel(name: Name, namespace: Namespace = None) -> None:
    """Delete a job; its workers save before they end, and the next one of the stage goes on from there."""
    from training.submission.api import ApiServer
    from training.submission.jobs import Jobs

    found = Jobs(ApiServer(namespace))
    kind, _ = found.find_any(name)
    found.delete(kind, name)
    typer.echo(f"{name} is deleted; its checkpoints stay")


def run(stage: Stage, params: ParamsFile = Path("params.yaml"), size: Size = None) -> None:
    """Run a stage of the pipeline where `launcher` in params.yaml says: here, or as a job of a cluster."""
    from training.params import load_params
    from training.submission.manifests import is_job

    if stage not in LOCALLY:
        raise UserError(f"{stage!r} is no stage; stages: {', '.join(LOCALLY)}")
    options = ["--params", str(params), *(["--size", size] if size else [])]
    chosen = load_params(params, size)
    if chosen.launcher == "local" or not is_job(stage, chosen):
        arguments = local_command(stage, _num_processes(chosen.processes))
        # `share` only links what lies here.
        arguments += [] if stage == "share" else options
    elif stage == "share":
        _share_by_name()
        return
    elif stage == "evaluate":
        raise typer.Exit(_evaluate_and_release(options))
    else:
        arguments = [*SUBMIT, stage, "--wait", *options]
    os.execv(sys.executable, [sys.executable, "-m", *arguments])


def local_command(stage: str, processes: int) -> list[str]:
    """The module, with arguments, that runs a stage on this machine in so many processes where it can."""
    command = list(LOCALLY[stage])
    if processes == 1 or stage not in SHARED:
        return command
    if stage == "encode":
        launch = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        return [*launch, "--module", *command]
    return [*command, "--nproc", str(processes)]


def _evaluate_and_release(options: list[str]) -> int:
    """Run both jobs after stage 3, so that the pipeline ends with a champion; the exit code.

    A model that is not promoted has been evaluated all the same: the pipeline is done.
    """
    from training.launching.exit_codes import PERMANENT_FAILURE

    for stage in ("evaluate", "release"):
        command = [sys.executable, "-m", *SUBMIT, stage, "--wait", *options]
        code = subprocess.run(command, check=False).returncode
        if code == PERMANENT_FAILURE and stage == "release":
            typer.echo("evaluated, but not promoted; again: vargpt submit release --wait", err=True)
            return 0
        if code:
            return code
    return 0


def _num_processes(processes: int | str) -> int:
    if isinstance(processes, int):
        return processes
    import torch

    return max(torch.cuda.device_count(), 1)


def _submitter(namespace: str | None) -> "Submitter":
    from training.submission.api import ApiServer
    from training.submission.submit import Submitter

    return Submitter(ApiServer(namespace), Path(), lambda line: typer.echo(line, err=True))


def _share_by_name() -> None:
    """What lies on a volume of the cluster is not shared as a file; its hash is all that is kept here."""
    from training.registry.shared_model import share_by_name

    typer.echo(
        f"the final model stays on the cluster's volume: {share_by_name(Path('artifacts/stage3.json'))}"
    )
