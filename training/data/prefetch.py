"""Processes that make the micro-batches of the next steps while this one is computed."""

import os
import resource
import signal
from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, Dataset

from model.errors import UserError
from training.data.step_batches import LoadedStep, StepBatches
from training.parent_death import die_with_parent


class _Steps(Dataset[LoadedStep | UserError]):
    """The steps of one rank by number, as DataLoader asks for them."""

    def __init__(self, batches: StepBatches, rank: int, world_size: int) -> None:
        self._batches, self._rank, self._world_size = batches, rank, world_size

    def __getitem__(self, step: int) -> LoadedStep | UserError:
        try:
            return self._batches.load(step, self._rank, self._world_size)
        except UserError as error:
            # DataLoader would wrap it in the worker's traceback.
            return error


class Prefetcher:
    """Steps in order, made ahead by other processes; the first one is made here while they start.

    A step that does not follow the one before starts anew there, so that going on anywhere costs nothing.
    """

    def __init__(self, batches: StepBatches, workers: int, steps: int) -> None:
        self._batches, self._workers, self._steps = batches, workers, steps
        self._next: tuple[int, int, int] | None = None
        self._iterator: Iterator[LoadedStep | UserError] = iter(())

    def load(self, step: int, rank: int, world_size: int) -> LoadedStep:
        """As `StepBatches.load`."""
        if self._next == (step, rank, world_size) and step < self._steps:
            loaded = next(self._iterator)
        else:
            self._iterator = self._ahead(step + 1, rank, world_size)
            loaded = self._batches.load(step, rank, world_size)
        self._next = step + 1, rank, world_size
        if isinstance(loaded, UserError):
            raise loaded
        return loaded

    def _ahead(self, first: int, rank: int, world_size: int) -> Iterator[LoadedStep | UserError]:
        if first >= self._steps:
            return iter(())
        # A tensor that comes from another process takes a file descriptor; the usual limit is 1024.
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        loader = DataLoader(
            _Steps(self._batches, rank, world_size),
            batch_size=None,
            sampler=range(first, self._steps),
            num_workers=self._workers,
            prefetch_factor=2 if self._workers == 1 else 1,
            # A fork would copy locks that threads hold.
            multiprocessing_context="spawn",
            worker_init_fn=_start_worker,
            pin_memory=torch.cuda.is_available(),
        )
        return iter(loader)


def _start_worker(_: int) -> None:
    die_with_parent(os.getppid())
    # Ctrl-C reaches all processes of a terminal: training needs its batches until it has saved.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
