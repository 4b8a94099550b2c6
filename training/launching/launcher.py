"""Starts the training processes of this node: `python -m training.launching stage1`, on a laptop and in a
pod.

One process replaces the launcher and ends as it ends. Several meet through torch's elastic agent, where the
PET_ variables of an operator say or else on this machine, and how they ended becomes an exit code that an
operator with `restartPolicy: ExitCode` understands (torchrun says 1, "never try again", whatever happened).
Restarts are the operator's: each is a new pod with a new address, so a group never restarts in place.
"""

import argparse
import contextlib
import json
import logging
import os
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import psutil

from model.errors import UserError
from training.launching.exit_codes import CRASHED, DONE, LAUNCHER_PID, PERMANENT, STOPPED

# torch is imported where a group needs it: a process that is alone imports it once, as training itself.

logger = logging.getLogger(__name__)

EXIT_GRACE_SECONDS = 1.0
BACKBONES = "backbones"


@dataclass(frozen=True, kw_only=True)
class Rendezvous:
    """Where the processes of a job meet, and how many.

    Args:
        endpoint: `host:port` of the node that keeps the rendezvous's store; empty if this machine is alone.
    """

    min_nodes: int = 1
    max_nodes: int = 1
    num_processes: int = 1
    endpoint: str = ""
    backend: str = "c10d"
    run_id: str = "vargpt"

    @property
    def is_alone(self) -> bool:
        """Whether one process is all there is, and no operator looks at its exit code."""
        return not self.endpoint and self.num_processes == 1

    @property
    def is_host(self) -> bool:
        """Whether this node keeps the store: of all nodes exactly one, which speaks for the job."""
        return self.endpoint.rpartition(":")[0] == socket.gethostname()


def count_of(name: str, text: str) -> int:
    """Reads a count of at least one; `auto`, `cpu` and `gpu` count what this machine has."""
    if text in ("auto", "cpu", "gpu"):
        from torch.distributed.run import determine_local_world_size

        return determine_local_world_size(text)
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"{name} must count at least 1, not {text!r}")
    return int(text)


def read_rendezvous(environment: Mapping[str, str], num_processes: str | None) -> Rendezvous:
    """Reads what an operator injects; without one, all processes are on this machine.

    Args:
        num_processes: Count on this node, or `auto`, `cpu`, `gpu`; None leaves it to the operator.
    """
    least, _, most = environment.get("PET_NNODES", "1").partition(":")
    return Rendezvous(
        min_nodes=count_of("PET_NNODES", least),
        max_nodes=count_of("PET_NNODES", most or least),
        num_processes=count_of("--nproc", num_processes or environment.get("PET_NPROC_PER_NODE", "1")),
        endpoint=environment.get("PET_RDZV_ENDPOINT", ""),
        backend=environment.get("PET_RDZV_BACKEND", "c10d"),
        run_id=environment.get("PET_RDZV_ID", "vargpt"),
    )


def committed_steps(folder: Path) -> int:
    """Adds up the newest committed step of each series of checkpoints under a folder."""
    newest: Counter[Path] = Counter()
    for marker in folder.glob("**/step_*/COMPLETE"):
        number = marker.parent.name.removeprefix("step_")
        if number.isdecimal():
            series = marker.parent.parent
            newest[series] = max(newest[series], int(number))
    return newest.total()


class AttemptCounter:
    """Counts starts since the last checkpoint, on its volume: operators restart ExitCode jobs without end.

    A start is counted before it happens, so that even a launcher that is killed leaves its mark.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "attempts.json"

    def begin(self) -> int:
        """Counts this start and returns its number."""
        steps = committed_steps(self.folder)
        known = json.loads(self.path.read_text()) if self.path.exists() else {"steps": 0, "attempts": 0}
        attempts = known["attempts"] if steps <= known["steps"] else 0
        self._write(max(steps, known["steps"]), attempts + 1)
        return attempts + 1

    def end(self, code: int) -> None:
        """Takes a start back that was merely stopped, and forgets all of them when the job is over."""
        if code in (DONE, PERMANENT):
            self.path.unlink(missing_ok=True)
        elif code == STOPPED:
            known = json.loads(self.path.read_text())
            self._write(known["steps"], known["attempts"] - 1)

    def _write(self, steps: int, attempts: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_suffix(".tmp")
        beside.write_text(json.dumps({"steps": steps, "attempts": attempts}))
        beside.replace(self.path)


def exit_code(codes: Iterable[int]) -> int:
    """Says with one number how a group of processes ended.

    A mistake of the user outweighs all, as trying again cannot help. An uncaught exception (1) is retried:
    more often than not it is a peer that went away. Negative codes are signals, as `subprocess` has them.
    """
    codes = [128 - code if code < 0 else code for code in codes]
    if PERMANENT in codes:
        return PERMANENT
    crashes = [code for code in codes if code not in (DONE, STOPPED)]
    if crashes:
        return crashes[0] if crashes[0] > 128 else CRASHED
    return STOPPED if STOPPED in codes else DONE


def forward_stop(_number: int, _frame: FrameType | None) -> None:
    """Asks every child to save and end, and lets them; with none, there is nothing to wait for."""
    children = psutil.Process().children()
    if not children:
        raise KeyboardInterrupt("stopped while no training process ran")
    logger.info("asked to stop: waiting for %d processes to save", len(children))
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.terminate()


def run_group(rendezvous: Rendezvous, command: Sequence[str]) -> int:
    """Runs a command as this node's share of the group, to its end.

    Returns:
        The exit code that tells an operator whether to try again.
    """
    # First of all: process 1 of a pod ignores signals that it has no handler for.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, forward_stop)
    try:
        return run_elastic(rendezvous, command)
    except KeyboardInterrupt as stop:
        logger.info("%s", stop)
        return STOPPED


def run_elastic(rendezvous: Rendezvous, command: Sequence[str]) -> int:
    """Waits in the rendezvous, runs the command and reports how it ended."""
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    settings = LaunchConfig(
        min_nodes=rendezvous.min_nodes,
        max_nodes=rendezvous.max_nodes,
        nproc_per_node=rendezvous.num_processes,
        rdzv_backend=rendezvous.backend,
        rdzv_endpoint=rendezvous.endpoint or "localhost:0",
        run_id=rendezvous.run_id,
        max_restarts=0,
        # The agent would take the others as its own end and forget how its children ended.
        signals_to_handle="SIGQUIT",
    )
    os.environ[LAUNCHER_PID] = str(os.getpid())
    try:
        elastic_launch(settings, command[0])(*command[1:])
    except ChildFailedError as error:
        for rank, failure in error.failures.items():
            logger.info("process %d ended with exit code %d", rank, failure.exitcode)
        # The other nodes need the store, which may be in this process, until they saw how their own ended.
        time.sleep(EXIT_GRACE_SECONDS)
        return exit_code(failure.exitcode for failure in error.failures.values())
    except (RendezvousError, DistError) as error:
        logger.info("the rendezvous at %s failed: %s", settings.rdzv_endpoint, error)
        return CRASHED
    return DONE


def run_counted(rendezvous: Rendezvous, command: Sequence[str], attempts: AttemptCounter, limit: int) -> int:
    """Runs a group for an operator, which tries again until the limit of attempts says that it is no use."""
    number = attempts.begin()
    if number > limit:
        logger.error("error: no checkpoint was committed in %d attempts; giving up", limit)
        code = PERMANENT
    else:
        logger.info("attempt %d of %d since the last checkpoint", number, limit)
        code = run_group(rendezvous, command)
    attempts.end(code)
    return code


def read_arguments(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Reads the launcher's own options and leaves the rest to training."""
    parser = argparse.ArgumentParser(
        prog="python -m training.launching",
        description="Start a training stage; options that are not listed go to training.train.",
        allow_abbrev=False,
    )
    parser.add_argument("stage", help="backbones, stage1, stage2, stage3 or joint")
    parser.add_argument("--nproc", help="processes on this node: a number, auto, cpu or gpu")
    parser.add_argument("--outputs", default="outputs", help="folder of checkpoints and results")
    parser.add_argument("--max-attempts", type=int, default=3, help="starts without a new checkpoint")
    parser.add_argument("--module", default="training.launching.stage_process", help=argparse.SUPPRESS)
    return parser.parse_known_args(arguments)


def launch(options: argparse.Namespace, passed_on: Sequence[str], environment: Mapping[str, str]) -> int:
    """Runs a stage as the arguments and the environment say; does not return if it is alone."""
    rendezvous = read_rendezvous(environment, options.nproc)
    command = [sys.executable, "-m", options.module, options.stage, "--outputs", options.outputs, *passed_on]
    if options.stage == BACKBONES and rendezvous.max_nodes * rendezvous.num_processes > 1:
        raise UserError(f"{BACKBONES} is one process, which starts its own: run it without --nproc or nodes")
    if rendezvous.is_alone:
        os.execv(command[0], command)
    if not rendezvous.is_host:
        return run_group(rendezvous, command)
    attempts = AttemptCounter(Path(options.outputs, options.stage))
    return run_counted(rendezvous, command, attempts, options.max_attempts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a stage and returns the launcher's exit code."""
    logging.basicConfig(level=logging.INFO, format="launch: %(message)s")
    try:
        return launch(*read_arguments(arguments), os.environ)
    except ValueError as error:
        logger.error("error: %s", error)
        return PERMANENT
