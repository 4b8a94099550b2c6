"""WorkerProcesses of work side by side, each in a process of its own, and their news in one place."""

import math
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.synchronize import Event
from typing import Any

from model.errors import UserError
from training.errors import Stopped
from training.parent_death import die_with_parent

# How a worker ended: ("done",), ("stopped", why) or ("failed", whether the user can mend it, why).
Outcome = tuple
PartReport = Callable[[str, int, dict[str, float]], None]

POLL_SECONDS = 0.2
# A worker that was asked to stop saves first; one that takes longer is killed.
PATIENCE_SECONDS = 20.0


@dataclass(frozen=True)
class ParentChannel:
    """What a worker has of its parent: where news go, and whether to stop."""

    connection: Connection
    stop: Event

    def report(self, part: str, step: int, losses: dict[str, float]) -> None:
        """News of one step of one part."""
        self.connection.send(("step", part, step, losses))

    def should_stop(self) -> bool:
        """Whether the parent, or a signal, wants this worker to end."""
        return self.stop.is_set()

    @contextmanager
    def telling(self) -> Iterator[None]:
        """How the block ended is told to the parent; errors go on their way."""
        try:
            yield
        except Stopped as interrupted:
            self.connection.send(("stopped", str(interrupted)))
        except (ValueError, OSError, RuntimeError) as error:
            self.connection.send(("failed", isinstance(error, UserError), str(error)))
            raise
        else:
            self.connection.send(("done",))


Worker = Callable[[ParentChannel], None]


def _run(worker: Worker, channel: ParentChannel) -> None:
    """The life of one process."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: channel.stop.set())
    die_with_parent(multiprocessing.parent_process().pid)
    with channel.telling():
        worker(channel)


class WorkerProcesses:
    """Processes that run workers, from start to end.

    Args:
        workers: By name; they and what they hold must be picklable.
    """

    def __init__(self, workers: Mapping[str, Worker]) -> None:
        context = multiprocessing.get_context("spawn")
        self.stop = context.Event()
        self.deadline = math.inf
        self.processes: dict[Connection, Any] = {}
        self.ends: dict[Connection, Outcome] = {}
        for name, worker in workers.items():
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_run, args=(worker, ParentChannel(theirs, self.stop)), name=name)
            process.start()
            # The child holds the only other end: when it dies, reading says so.
            theirs.close()
            self.processes[ours] = process

    def ask_to_stop(self) -> None:
        """Let every worker save and end, in limited time."""
        if not self.stop.is_set():
            self.stop.set()
            self.deadline = time.monotonic() + PATIENCE_SECONDS

    def follow(self, report: PartReport, should_stop: Callable[[], bool]) -> None:
        """Pass on reports until every worker has ended; the first that does not end well stops the others."""
        while running := [connection for connection in self.processes if connection not in self.ends]:
            if should_stop():
                self.ask_to_stop()
            if time.monotonic() > self.deadline:
                self.kill()
            for connection in wait(running, POLL_SECONDS):
                kind, *news = self._received(connection)
                if kind == "step":
                    report(*news)
                    continue
                self.ends[connection] = (kind, *news)
                if kind != "done":
                    self.ask_to_stop()

    def _received(self, connection: Connection) -> tuple:
        try:
            return connection.recv()
        except (EOFError, OSError):
            process = self.processes[connection]
            process.join()
            ended = f"{process.name} ended without a word, code {process.exitcode}"
            return ("stopped", ended) if self.stop.is_set() else ("failed", False, ended)

    def kill(self) -> None:
        """Outcome every process now; what is on the disk is whole at any time."""
        for process in self.processes.values():
            process.kill()

    def close(self) -> None:
        """No process is left, whatever happened."""
        for connection, process in self.processes.items():
            if connection not in self.ends:
                process.kill()
            process.join()
            connection.close()


def run_workers(workers: Mapping[str, Worker], report: PartReport, should_stop: Callable[[], bool]) -> None:
    """Run workers side by side to their ends.

    Raises:
        ValueError: what the user must mend, as the worker said it.
        RuntimeError: anything else that ended a worker.
        Stopped: asked to stop; everything up to here is kept.
    """
    running = WorkerProcesses(workers)
    try:
        running.follow(report, should_stop)
    finally:
        running.close()
    ends = sorted(running.ends.values(), key=lambda end: end[0])
    for kind, *news in ends:
        if kind == "failed":
            raise (UserError if news[0] else RuntimeError)(news[1])
        if kind == "stopped":
            raise Stopped(news[0])
