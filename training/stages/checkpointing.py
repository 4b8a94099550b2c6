"""Checkpoints of a stage: every process writes what it owns, in the background, and any engine goes on from
them.

A step is begun by a copy to host memory, the only part that training waits for. Threads write the copies.
Once all processes have written theirs, which they tell each other between two steps, rank zero commits the
step.
"""

import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.errors import UserError
from model.manifest import read_manifest
from training.checkpoints import step_folders, store
from training.checkpoints.fragments import PART, Fragments, fragment_name, write_part
from training.checkpoints.slices import Flats, Slice, share_of, views
from training.engines.engine import Engine

logger = logging.getLogger(__name__)

STATE = "state.json"
# Processes that still write or read after so many times what the last checkpoint took are given up, but not
# before a disk of so many bytes a second would be through.
PATIENCE = 10
LEAST_PATIENCE_SECONDS = 600.0
SLOWEST_DISK = 10e6


class StageCheckpoints:
    """The checkpoints of one run; all processes call the same methods in the same order.

    Args:
        keep: How many of the newest steps are kept.
    """

    def __init__(self, engine: Engine, folder: Path, keep: int) -> None:
        self.engine, self.folder, self.keep = engine, folder, keep
        # What the last step took: seconds that training waited, seconds of writing, and bytes of this
        # process.
        self.stall_seconds = self.write_seconds = 0.0
        self.num_bytes = 0
        self._buffers: dict[str, Tensor] = {}
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: tuple[int, Future[str]] | None = None

    def patience(self, num_bytes: int) -> float:
        """Seconds that processes wait for one another while they write or read so much all together."""
        return max(LEAST_PATIENCE_SECONDS, PATIENCE * self.write_seconds, num_bytes / SLOWEST_DISK)

    def save(self, step: int, flats: Flats, state: Mapping[str, Any]) -> None:
        """Begin to save a step; one that is still being written is finished before."""
        self.finish()
        began = time.monotonic()
        slices = self.engine.slices()
        if self.engine.replicates_state:
            slices = share_of(slices, self.engine.rank, self.engine.world_size)
        fragments = self._copied(slices, flats)
        self.num_bytes = sum(tensor.nbytes for tensor in fragments.values())
        self.stall_seconds = time.monotonic() - began
        self._pending = step, self._pool.submit(self._write, step, fragments, dict(state))

    def status(self) -> tuple[bool, bool]:
        """Whether this process has written its part of the pending step, and whether it has failed."""
        if self._pending is None or not self._pending[1].done():
            return False, False
        has_failed = self._pending[1].exception() is not None
        return not has_failed, has_failed

    def settle(self, num_written: int, num_failed: int) -> bool:
        """Commit or give up the pending step once all processes are through with it; whether it was given up.

        Args:
            num_written: Processes whose `status` said so.

        Raises:
            NonFiniteError: what was to be saved is not finite; OSError on processes whose part is.
        """
        if self._pending is None or num_written + num_failed < self.engine.world_size:
            return False
        (step, job), self._pending = self._pending, None
        error = job.exception()
        if num_failed:
            self._together(lambda: self._give_up(step, error))
            return True
        hashes = self.engine.gather(job.result())
        # Rank zero also deletes old steps, as large as this one.
        failure = self._together(lambda: self._commit(step, hashes) if self.engine.is_main else None)
        return bool(self.engine.any_of(failure is not None))

    def finish(self) -> bool:
        """Wait until the pending step is committed or given up; whether it was given up."""
        if self._pending is None:
            return False
        job = self._pending[1]
        # Not its result: an error is for `settle`, once all processes have heard of it.
        self._together(lambda: wait([job]))
        written, failed = self.status()
        total = self.engine.total(torch.tensor([float(written), float(failed)]))
        return self.settle(int(total[0]), int(total[1]))

    def newest(self) -> tuple[Fragments, int, dict[str, Any]] | None:
        """The newest step that is intact: its parts, its number and its state; None without any.

        Processes share the reading. Steps that are damaged are renamed by rank zero.
        """
        if self.engine.is_main:
            # Before anything is written there, but not before training goes on.
            for path in step_folders.abandon_unfinished(self.folder):
                self._pool.submit(shutil.rmtree, path, ignore_errors=True)
        while True:
            paths = step_folders.committed_steps(self.folder)[:1] if self.engine.is_main else []
            name = self.engine.broadcast(paths[0].name if paths else None)
            if name is None:
                return None
            if self._is_intact(self.folder / name):
                path = self.folder / name
                return (
                    Fragments(path),
                    step_folders.step_of(path),
                    json.loads((path / STATE).read_text(encoding="utf-8")),
                )

    def _together(self, work: Callable[[], Any]) -> Any:
        """Do what may take as long as to write the pending step; its result here."""
        return self.engine.together(work, self.patience(self.num_bytes * self.engine.world_size))

    def _copied(self, slices: list[Slice], flats: Flats) -> dict[str, Tensor]:
        """The elements of slices in host memory, which later updates do not change; memory is used again."""
        fragments = {}
        for kind, part, elements in views(slices, flats):
            name = fragment_name(kind, part)
            if name not in self._buffers:
                self._buffers[name] = torch.empty(part.count, pin_memory=elements.is_cuda)
            fragments[name] = self._buffers[name].copy_(elements, non_blocking=True)
        if self.engine.device.type == "cuda":
            torch.cuda.synchronize()
        self._buffers = fragments
        return fragments

    def _write(self, step: int, fragments: Mapping[str, Tensor], state: Mapping[str, Any]) -> str:
        """Write this process's part, and rank zero the state; the part's SHA-256."""
        store.refuse_non_finite(fragments, step)
        began, folder = time.monotonic(), step_folders.unfinished_path(self.folder, step)
        folder.mkdir(parents=True, exist_ok=True)
        step_folders.check_free_space(folder, self.num_bytes)
        if self.engine.is_main:
            (folder / STATE).write_text(json.dumps(state), encoding="utf-8")
            step_folders.flush(folder / STATE)
        sha256 = write_part(folder / PART.format(rank=self.engine.rank), fragments)
        self.write_seconds = time.monotonic() - began
        return sha256

    def _commit(self, step: int, hashes: Sequence[str]) -> OSError | None:
        names = {PART.format(rank=rank): sha256 for rank, sha256 in enumerate(hashes)}
        try:
            step_folders.commit(self.folder, step, names, self.keep)
        except OSError as error:
            self._give_up(step, error)
            return error
        return None

    def _give_up(self, step: int, error: BaseException | None) -> None:
        if self.engine.is_main:
            shutil.rmtree(step_folders.unfinished_path(self.folder, step), ignore_errors=True)
        if error is not None and not isinstance(error, OSError):
            raise error
        reason = error or "another process failed"
        logger.warning(
            "step %d could not be saved in %s: %s; %s",
            step,
            self.folder,
            reason,
            step_folders.what_is_left(self.folder),
        )

    def _is_intact(self, path: Path) -> bool:
        """Whether all files of a step match their hashes; renames one that does not."""
        patience = self.patience(step_folders.num_bytes(path))
        faults = self.engine.gather(self.engine.together(lambda: self._fault_in_share(path), patience))
        found = [fault for fault in faults if fault]
        if found and self.engine.is_main:
            step_folders.mark_damaged(path, found[0])
        return not found

    def _fault_in_share(self, path: Path) -> str:
        """What is wrong with those files of a step that this process reads; empty when nothing is."""
        try:
            names = sorted(read_manifest(path))[self.engine.rank :: self.engine.world_size]
            step_folders.verify_step(path, frozenset(names))
        except UserError as error:
            return str(error)
        return ""
