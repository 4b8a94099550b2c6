"""Memory and work of running processes, and room on disk, as Linux counts them."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import psutil

SAMPLE_SECONDS = 0.2
# Looking for child processes goes through all processes of the machine.
CHILDREN_SECONDS = 5.0
BLOCK = 512  # the unit of `st_blocks`


def disk_bytes(folder: Path) -> int:
    """Room that everything in a folder takes; files with several names count once."""
    found = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            stat = os.lstat(os.path.join(parent, name))
            found[stat.st_dev, stat.st_ino] = stat.st_blocks * BLOCK
    return sum(found.values())


def cpu_seconds(pid: int) -> float:
    """Time that a process and all below it have worked so far, all threads together."""
    process = psutil.Process(pid)
    times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
    return sum(each.user + each.system for each in times)


class MemoryWatch:
    """Watches a process and all below it while a `with` block runs.

    `peak_own` is what only they can use: it must fit in memory. `peak` also has the pages of files that they
    have mapped and touched, which the kernel takes away when it needs room.

    Args:
        pid: The process, which may start within the block.
    """

    def __init__(self, pid: Callable[[], int]) -> None:
        self.pid = pid
        self.peak = self.peak_own = 0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _watch(self) -> None:
        pids, looked = [], -CHILDREN_SECONDS
        while not self._is_over.wait(SAMPLE_SECONDS):
            if time.monotonic() - looked > CHILDREN_SECONDS:
                pids, looked = self._pids(), time.monotonic()
            own, mapped = 0, 0
            for pid in pids:
                sizes = _sizes_of(pid)
                own += sizes["RssAnon"] + sizes["RssShmem"]
                mapped += sizes["RssFile"]
            self.peak_own, self.peak = max(self.peak_own, own), max(self.peak, own + mapped)

    def _pids(self) -> list[int]:
        try:
            process = psutil.Process(self.pid())
            return [process.pid, *(child.pid for child in process.children(recursive=True))]
        except (psutil.NoSuchProcess, AttributeError):
            return []


def _sizes_of(pid: int) -> dict[str, int]:
    """Bytes by kind of memory; zeros of a process that has ended."""
    sizes = {"RssAnon": 0, "RssFile": 0, "RssShmem": 0}
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return sizes
    for line in lines:
        name, _, value = line.partition(":")
        if name in sizes:
            sizes[name] = int(value.split()[0]) * 1024
    return sizes
