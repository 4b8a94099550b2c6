"""Runs workers at the same time, each in a process of its own, and collects their losses and outcomes."""

import math
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.synchronize import Event
from typing import Any, Literal

from model.errors import UserError
from training.errors import Stopped
from training.parent_death import die_with_parent

# Called with backbone, step counted from 0, and its losses by name.
OnBackboneStep = Callable[[str, int, dict[str, float]], None]

POLL_SECONDS = 0.2
# Time for a worker that must stop to save; then it is killed.
STOP_TIMEOUT_SECONDS = 20.0


@dataclass(frozen=True)
class Outcome:
    """How a worker ended, and why it did not finish.

    Args:
        error: What the parent raises for one that failed: UserError, OSError where another start may do, or
            RuntimeError.
    """

    status: Literal["done", "stopped", "failed"]
    reason: str = ""
    error: type[Exception] = RuntimeError


@dataclass(frozen=True)
class ParentConnection:
    """A worker's connection to its parent: sends losses and the outcome, receives the request to stop."""

    connection: Connection
    stop: Event

    def report_step(self, backbone: str, step: int, losses: dict[str, float]) -> None:
        """Send the losses of a step, counted from 0."""
        self.connection.send((backbone, step, losses))

    def should_stop(self) -> bool:
        """Whether the parent or a signal has requested a stop."""
        return self.stop.is_set()

    @contextmanager
    def reporting_outcome(self) -> Iterator[None]:
        """Send how the block ended; errors are raised again, but not Stopped."""
        try:
            yield
        except Stopped as stopped:
            self.connection.send(Outcome("stopped", str(stopped)))
        except (ValueError, OSError, RuntimeError) as error:
            kind = next((kind for kind in (UserError, OSError) if isinstance(error, kind)), RuntimeError)
            self.connection.send(Outcome("failed", str(error), kind))
            raise
        else:
            self.connection.send(Outcome("done"))


Worker = Callable[[ParentConnection], None]


def _worker_main(worker: Worker, parent: ParentConnection) -> None:
    """Entry point of a worker process."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: parent.stop.set())
    die_with_parent(multiprocessing.parent_process().pid)
    with parent.reporting_outcome():
        worker(parent)


class WorkerProcesses:
    """Running worker processes; they start when it is made.

    Args:
        workers: By name; they and what they refer to must be picklable.
    """

    def __init__(self, workers: Mapping[str, Worker]) -> None:
        context = multiprocessing.get_context("spawn")
        self.stop = context.Event()
        self.deadline = math.inf
        self.processes: dict[Connection, Any] = {}
        self.outcomes: dict[Connection, Outcome] = {}
        # Of workers that have learned something since they started, which a stop must save.
        self.begun: set[Connection] = set()
        for name, worker in workers.items():
            ours, theirs = context.Pipe(duplex=False)
            parent = ParentConnection(theirs, self.stop)
            process = context.Process(target=_worker_main, args=(worker, parent), name=name)
            process.start()
            # The child has the only other end then, so that reading ours fails as soon as it dies.
            theirs.close()
            self.processes[ours] = process

    def request_stop(self) -> None:
        """Let every worker save and end, in limited time."""
        if not self.stop.is_set():
            self.stop.set()
            self.deadline = time.monotonic() + STOP_TIMEOUT_SECONDS

    def wait_for_all(self, on_step: OnBackboneStep, should_stop: Callable[[], bool]) -> None:
        """Pass on losses until every worker has ended; one that fails or is stopped stops the others."""
        while running := [connection for connection in self.processes if connection not in self.outcomes]:
            if should_stop():
                self.request_stop()
            if time.monotonic() > self.deadline:
                self.kill()
            for connection in wait(running, POLL_SECONDS):
                message = self._receive(connection)
                if not isinstance(message, Outcome):
                    self.begun.add(connection)
                    on_step(*message)
                    continue
                self.outcomes[connection] = message
                if message.status != "done":
                    self.request_stop()

    def _receive(self, connection: Connection) -> Outcome | tuple[str, int, dict[str, float]]:
        try:
            return connection.recv()
        except (EOFError, OSError):
            process = self.processes[connection]
            process.join()
            if self.stop.is_set() and connection not in self.begun:
                return Outcome("stopped", f"the {process.name} stopped before its first step")
            reason = f"the {process.name} died with exit code {process.exitcode}"
            # A signal: memory ran out, or saving took too long. Any other code is an error unforeseen.
            return Outcome("failed", reason, ChildProcessError if process.exitcode < 0 else RuntimeError)

    def kill(self) -> None:
        """Kill every process; checkpoints on the disk are complete at any time."""
        for process in self.processes.values():
            process.kill()

    def close(self) -> None:
        """Kill processes that still run, wait for all to end and release their resources."""
        for connection, process in self.processes.items():
            if connection not in self.outcomes:
                process.kill()
            process.join()
            connection.close()


def run_workers(
    workers: Mapping[str, Worker], on_step: OnBackboneStep, should_stop: Callable[[], bool]
) -> None:
    """Run workers at the same time until all have ended.

    Raises:
        UserError: a worker raised it.
        OSError: a disk failed a worker, also while it saved for a stop, or a signal ended it.
        RuntimeError: another error ended a worker.
        Stopped: a stop was requested; everything so far is saved.
    """
    processes = WorkerProcesses(workers)
    try:
        processes.wait_for_all(on_step, should_stop)
    finally:
        processes.close()
    for outcome in processes.outcomes.values():
        if outcome.status == "failed":
            raise outcome.error(outcome.reason)
    for outcome in processes.outcomes.values():
        if outcome.status == "stopped":
            raise Stopped(outcome.reason)
