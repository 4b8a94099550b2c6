"""How long each process computes by itself, by which a slow GPU or node stands out.

The time of a whole step does not say it: all processes end a step together, whoever was late. A forward pass
waits for nobody. Where processes share weights it does, in every layer; a fixed product of matrices, timed
once in a step, stands in for it there.
"""

import contextlib
import time
from collections.abc import Callable, Iterator

import torch

from training.engines.engine import Engine

# Some milliseconds of a GPU, and of one core.
SIDES, NUM_PRODUCTS = {"cuda": 4096, "cpu": 256}, 16


class ComputeTime:
    """Times one process in those steps that are recorded."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self._is_measured = engine, False
        # One for each part of the step; asked once it is over, for a GPU works behind.
        self._spans: list[Callable[[], float]] = []

    def begin(self, is_measured: bool) -> None:
        """A step begins on all processes, which have met just now."""
        self._is_measured, self._spans = is_measured, []
        if is_measured and self.engine.shards_weights:
            with self._timed():
                _multiply(self.engine.device)

    @contextlib.contextmanager
    def forward(self) -> Iterator[None]:
        """Within the block is a forward pass of the step."""
        if self._is_measured and not self.engine.shards_weights:
            with self._timed():
                yield
        else:
            yield

    def by_rank(self) -> list[float]:
        """Seconds of every process in the step, asked by all of them; empty where it is not measured."""
        if not self._is_measured:
            return []
        seconds = torch.zeros(self.engine.world_size)
        seconds[self.engine.rank] = sum(span() for span in self._spans)
        return self.engine.total(seconds).tolist()

    @contextlib.contextmanager
    def _timed(self) -> Iterator[None]:
        if self.engine.device.type != "cuda":
            began = time.monotonic()
            yield
            seconds = time.monotonic() - began
            self._spans.append(lambda: seconds)
            return
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        yield
        last.record()
        self._spans.append(lambda: _elapsed(first, last))


def _elapsed(first: torch.cuda.Event, last: torch.cuda.Event) -> float:
    last.synchronize()
    return first.elapsed_time(last) / 1000


def _multiply(device: torch.device) -> None:
    """The same work on every process; nothing random, so that training is as without it."""
    side, dtype = SIDES[device.type], torch.bfloat16 if device.type == "cuda" else torch.float32
    ones = torch.ones(side, side, device=device, dtype=dtype)
    for _ in range(NUM_PRODUCTS):
        ones @ ones
