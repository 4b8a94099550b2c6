"""A group of processes that save together, here threads: they tell each other, and own a share of a state."""

import threading
from concurrent.futures import ThreadPoolExecutor

import torch

from training.checkpoints.slices import Slice
from training.engines.engine import Engine
from training.stages.checkpointing import StageCheckpoints

COUNT = 1000


class Process:
    """What checkpoints need of an engine; the group counts its collective operations."""

    device, replicates_state = torch.device("cpu"), False
    is_main, any_of, broadcast, together = (
        Engine.is_main,
        Engine.any_of,
        Engine.broadcast,
        Engine.together,
    )

    def __init__(self, rank, group):
        self.rank, self.world_size, self._group = rank, group.world_size, group

    def slices(self):
        return [Slice("matrix", self.rank * COUNT, COUNT, 0, 0)]

    def gather(self, value):
        self._group.told[self.rank] = value
        self._group.barrier.wait()
        found = list(self._group.told)
        self._group.barrier.wait()
        self._group.num_collectives += self.is_main
        return found

    def total(self, values):
        return torch.stack(self.gather(values)).sum(0)


class Group:
    """Checkpoints of all processes in one folder.

    Args:
        timeout: Seconds after which a collective operation fails that not all have begun.
    """

    def __init__(self, folder, world_size=2, timeout=20):
        self.world_size, self.told = world_size, [None] * world_size
        self.barrier, self.num_collectives = threading.Barrier(world_size, timeout=timeout), 0
        self.checkpoints = [
            StageCheckpoints(Process(rank, self), folder, keep=2) for rank in range(world_size)
        ]

    def each(self, work):
        """What every process's checkpoints return when all do this at once."""
        with ThreadPoolExecutor(self.world_size) as pool:
            return list(pool.map(work, self.checkpoints))

    def save(self, step):
        """Begin to save weights that all have the value of the step."""
        flats = {"weight": [torch.full((COUNT,), float(step))]}
        self.each(lambda checkpoints: checkpoints.save(step, flats, {"step": step}))

    def settle(self):
        """What a trainer does between two steps."""
        written, failed = map(sum, zip(*self.each(StageCheckpoints.status), strict=True))
        self.each(lambda checkpoints: checkpoints.settle(written, failed))

    def finish(self):
        return self.each(StageCheckpoints.finish)
