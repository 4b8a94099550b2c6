"""Launcher: starts the training processes of this node, waits for them and ends with their exit code.

A single process replaces the launcher. Several are started through torch's elastic agent; what it reports
becomes an exit code that an operator with `restartPolicy: ExitCode` understands (torchrun itself ends with 1,
"never retry", whatever happened). Restarts are left to the operator: each is a new pod with a new address, so
a group never restarts in place.
"""

import argparse
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType

import psutil

from model.errors import UserError
from training.launching.attempts import AttemptCounter
from training.launching.exit_codes import (
    DONE,
    PERMANENT_FAILURE,
    RETRYABLE_FAILURE,
    STOPPED,
    group_exit_code,
)
from training.launching.preflight import Node, NodeFault, check_node
from training.launching.rendezvous import Rendezvous, import_torch, read_rendezvous
from training.launching.stage_process import LAUNCHER_PID
from training.launching.watchdog import Patience, WatchedGroup, watched

# torch is imported where a group needs it: the process that replaces this one imports it anyway.

logger = logging.getLogger(__name__)

EXIT_GRACE_SECONDS = 1.0
# How long an elastic group that could begin waits for nodes that may still come; one that comes later is
# taken in all the same. torch's own 30 s would come on top of the silence after which a node counts as gone,
# and the rest is to go on within a minute of its death.
LAST_CALL_SECONDS = 5
# With 1, every round of a rendezvous has a store of its own for the training processes. Where they share that
# of the rendezvous, its address is told in the first round only (torch 2.13): who comes later waits in vain.
OWN_STORES = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
BACKBONES = "backbones"
# torch's environment variable with the path that the flight record of each rank begins with.
FLIGHT_RECORD = "TORCH_FR_DUMP_TEMP_FILE"


def read_arguments(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """The launcher's own options, and all others, which are passed to the training processes."""
    parser = argparse.ArgumentParser(
        prog="python -m training.launching",
        description="Start a training stage; other options are those of training.launching.stage_process.",
        allow_abbrev=False,
    )
    parser.add_argument("stage", help="backbones, stage1, stage2, stage3 or joint")
    parser.add_argument("--nproc", help="processes on this node: a number, auto, cpu or gpu")
    parser.add_argument("--outputs", default="outputs", help="folder of checkpoints and results")
    parser.add_argument("--max-attempts", type=int, default=3, help="starts without a new checkpoint")
    parser.add_argument(
        "--silence-seconds", type=float, default=Patience.silence, help="until what is silent counts as gone"
    )
    parser.add_argument(
        "--stall-seconds", type=float, default=Patience.stall, help="until a step that does not end is hung"
    )
    parser.add_argument(
        "--save-seconds",
        type=float,
        default=Patience.saving,
        help="for processes to save, before a group takes in a node",
    )
    parser.add_argument("--module", default="training.launching.stage_process", help=argparse.SUPPRESS)
    return parser.parse_known_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a stage; the exit code."""
    logging.basicConfig(level=logging.INFO, format="launch: %(message)s")
    try:
        return launch(*read_arguments(arguments), os.environ)
    except UserError as error:
        logger.error("error: %s", error)
        return PERMANENT_FAILURE
    except NodeFault as fault:
        logger.error("error: %s", fault)
        return RETRYABLE_FAILURE
    except OSError:
        # With Python's own exit code, 1, an operator would never try again.
        logger.exception("a disk or a network failed before or after training")
        return RETRYABLE_FAILURE


def launch(options: argparse.Namespace, passed_on: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a stage in as many processes as options and environment say; its exit code.

    A single process replaces this one, so that this function does not return.
    """
    rendezvous = read_rendezvous(environment, options.nproc)
    command = [sys.executable, "-m", options.module, options.stage, "--outputs", options.outputs, *passed_on]
    if options.stage == BACKBONES and rendezvous.max_nodes * rendezvous.num_processes > 1:
        raise UserError(f"{BACKBONES} is one process, which starts its own: run it without --nproc or nodes")
    outputs = Path(options.outputs, options.stage)
    check_node(Node(outputs, rendezvous.num_processes, rendezvous.endpoint, environment))
    if prefix := environment.get(FLIGHT_RECORD):
        # torch writes a record to a folder that is there, and makes none but its default one.
        Path(prefix).parent.mkdir(parents=True, exist_ok=True)
    if rendezvous.is_single_process:
        os.execv(command[0], command)
    patience = Patience(options.silence_seconds, options.stall_seconds, options.save_seconds)
    if not rendezvous.hosts_store:
        return run_group(rendezvous, command, patience, os._exit)
    attempts = AttemptCounter(outputs)
    return run_with_attempt_limit(rendezvous, command, patience, attempts, options.max_attempts)


def run_with_attempt_limit(
    rendezvous: Rendezvous, command: Sequence[str], patience: Patience, attempts: AttemptCounter, limit: int
) -> int:
    """Run a group, unless that many starts have made no new checkpoint; the exit code."""

    def end(code: int) -> None:
        try:
            attempts.end(code)
        finally:
            # The thread that calls this is the last that can end the launcher.
            os._exit(code)

    number = attempts.begin()
    if number > limit:
        logger.error("error: no checkpoint was committed in %d attempts; giving up", limit)
        code = PERMANENT_FAILURE
    else:
        logger.info("attempt %d of %d since the last checkpoint", number, limit)
        code = run_group(rendezvous, command, patience, end)
    attempts.end(code)
    return code


def run_group(
    rendezvous: Rendezvous, command: Sequence[str], patience: Patience, end: Callable[[int], None]
) -> int:
    """Run this node's processes of a group to their end, passing on signals to stop; the exit code.

    Args:
        end: Ends this process at once, where the group can neither go on nor be waited for.
    """
    # First of all: process 1 of a pod ignores signals that it has no handler for.
    asked: list[int] = []
    _handle_stops(lambda number, _: asked.append(number))
    # Not interrupted: modules that are loaded by half raise errors of their own.
    import_torch()
    group: WatchedGroup | None = None
    try:
        _handle_stops(_terminate_children)
        if asked:
            raise KeyboardInterrupt("stopped before any training process ran")
        with watched(rendezvous.endpoint, patience, end) as group:
            code = _run_elastic(rendezvous, command, patience.saving)
            group.ended(code)
    except KeyboardInterrupt as stop:
        logger.info("%s", stop)
        # Finished before that, and other nodes are still ending: a restart would train again.
        return DONE if group and group.is_done else STOPPED
    return code


def _handle_stops(handler: Callable[[int, FrameType | None], None]) -> None:
    """Call this on every signal by which a launcher is asked to stop."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, handler)


def _terminate_children(_number: int, _frame: FrameType | None) -> None:
    """Signal handler: asks every training process to save and end; without any, the launcher ends at once."""
    children = psutil.Process().children()
    if not children:
        raise KeyboardInterrupt("stopped while no training process ran")
    logger.info("asked to stop: waiting for %d processes to save", len(children))
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.terminate()


def _run_elastic(rendezvous: Rendezvous, command: Sequence[str], save_seconds: float) -> int:
    """Wait in the rendezvous, run the command through torch's elastic agent; the exit code."""
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # Else torch compares names and addresses, and every node of one machine takes itself for the host.
    host = {"is_host": rendezvous.hosts_store} if rendezvous.endpoint else {}
    config = LaunchConfig(
        min_nodes=rendezvous.min_nodes,
        max_nodes=rendezvous.max_nodes,
        nproc_per_node=rendezvous.num_processes,
        rdzv_backend=rendezvous.backend,
        rdzv_endpoint=rendezvous.endpoint or "localhost:0",
        rdzv_configs={"last_call_timeout": LAST_CALL_SECONDS, **host},
        run_id=rendezvous.run_id,
        max_restarts=0,
        # On any other signal the agent would end itself and lose the exit codes of its children.
        signals_to_handle="SIGQUIT",
    )
    os.environ[LAUNCHER_PID] = str(os.getpid())
    if rendezvous.is_elastic:
        from training.launching.saving_agent import use_saving_agent

        os.environ[OWN_STORES] = "1"
        use_saving_agent(save_seconds)
    try:
        elastic_launch(config, command[0])(*command[1:])
    except ChildFailedError as error:
        for rank, failure in error.failures.items():
            logger.info("process %d ended with exit code %d", rank, failure.exitcode)
        # Other nodes need the store, which may be in this process, until they know how their processes ended.
        time.sleep(EXIT_GRACE_SECONDS)
        return group_exit_code(failure.exitcode for failure in error.failures.values())
    except (RendezvousError, DistError) as error:
        logger.info("the rendezvous at %s failed: %s", config.rdzv_endpoint, error)
        return RETRYABLE_FAILURE
    return DONE
