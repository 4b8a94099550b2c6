"""Heartbeat files: what every training process of a node says to its launcher, a few times a second.

A thread of the process writes the file, so that a process that waits in a collective or reads for minutes is
alive all the same; one that is stopped, swapped out or stuck in a system call is not. The file has a fixed
size and is written in place: a full disk does not silence it.
"""

import contextlib
import faulthandler
import os
import signal
import struct
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

# Environment variable with the folder of these files; without it nobody listens.
HEARTBEATS = "VARGPT_HEARTBEATS"
BEAT_SECONDS = 0.5
# Process id, steps begun, seconds of its own begin, of the last step's and of the last beat on the machine's
# clock, is trained, is done.
_RECORD = struct.Struct("<qqdddqq")


@dataclass(frozen=True)
class Heartbeat:
    """What a training process said last.

    Args:
        steps: Training steps that it has begun.
        began, moved, beat: When the process began, when its last step, and when it wrote; seconds on this
            machine's monotonic clock.
        is_trained: It has trained all steps and writes the model, or waits for the process that does.
        is_done: It has finished its work and is about to end with exit code 0.
    """

    rank: int
    pid: int
    steps: int
    began: float
    moved: float
    beat: float
    is_trained: bool
    is_done: bool


class HeartbeatWriter(threading.Thread):
    """The thread that writes the file of this process; `SIGUSR1` writes where every thread is, beside it."""

    def __init__(self, folder: Path, rank: int) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self._file = os.open(folder / f"rank-{rank}", os.O_CREAT | os.O_WRONLY, 0o644)
        self._stacks = (folder / f"stacks-{rank}").open("w")
        self._began = self._moved = time.monotonic()
        self._steps, self._is_trained, self._is_done = 0, False, False
        faulthandler.register(signal.SIGUSR1, file=self._stacks, all_threads=False)
        self._write()

    @classmethod
    def started(cls) -> Self | None:
        """The heart of this process, beating; None where no launcher listens."""
        folder = os.environ.get(HEARTBEATS)
        if folder is None:
            return None
        writer = cls(Path(folder), int(os.environ.get("RANK", "0")))
        writer.start()
        return writer

    def step(self) -> None:
        """A training step begins."""
        self._steps, self._moved = self._steps + 1, time.monotonic()

    def trained(self) -> None:
        """The last step is done; writing the model follows."""
        self._is_trained = True
        self._write()

    def done(self) -> None:
        """The work is finished."""
        self._is_done = True
        self._write()

    def run(self) -> None:
        """Beat until the process ends."""
        while True:
            time.sleep(BEAT_SECONDS)
            self._write()

    def _write(self) -> None:
        facts = (
            os.getpid(),
            self._steps,
            self._began,
            self._moved,
            time.monotonic(),
            self._is_trained,
            self._is_done,
        )
        with contextlib.suppress(OSError):
            os.pwrite(self._file, _RECORD.pack(*facts), 0)


def read_heartbeats(folder: Path) -> list[Heartbeat]:
    """The last beat of every process of this node that has begun, by rank.

    Those that ended before another one began are left out: a group that grew has started its processes anew,
    and maybe under other ranks.
    """
    found = []
    for path in folder.glob("rank-*"):
        record = path.read_bytes()
        if len(record) == _RECORD.size:
            pid, steps, began, moved, beat, is_trained, is_done = _RECORD.unpack(record)
            flags = bool(is_trained), bool(is_done)
            found.append(Heartbeat(int(path.name[5:]), pid, steps, began, moved, beat, *flags))
    newest = max((heartbeat.began for heartbeat in found), default=0.0)
    found = [heartbeat for heartbeat in found if heartbeat.beat >= newest or is_there(heartbeat.pid)]
    return sorted(found, key=lambda heartbeat: heartbeat.rank)


def is_there(pid: int) -> bool:
    """Whether a process runs, or has not been waited for."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def where_it_hangs(folder: Path, heartbeat: Heartbeat, patience_seconds: float = 1.0) -> str:
    """The innermost line of Python that a process is in, as `function (file.py:12)`."""
    path = folder / f"stacks-{heartbeat.rank}"
    with contextlib.suppress(ProcessLookupError):
        os.kill(heartbeat.pid, signal.SIGUSR1)
    until = time.monotonic() + patience_seconds
    while time.monotonic() < until:
        # '  File "/app/training/x.py", line 12 in function', innermost first.
        written, _, _ = path.read_text().rpartition("\n")
        lines = [line for line in written.splitlines() if line.startswith("  File ")]
        if lines:
            place, _, function = lines[0].rpartition(" in ")
            name, _, line = place.partition('", line ')
            return f"{function} ({Path(name).name}:{line})"
        time.sleep(0.05)
    return "it does not answer"
