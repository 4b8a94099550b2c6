"""The scheduler: one thread owns the model and answers what waits in batches."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from serving.config import Limits
from serving.jobs import Choice, Finished, Job, Listener
from serving.metrics import Meters

if TYPE_CHECKING:  # types alone: the HTTP face starts without waiting for torch
    from model.generation.generate import Event, Reply, Request

logger = logging.getLogger(__name__)

SMOOTHING = 0.2  # weight of the newest batch in the running mean of batch durations


class Generate(Protocol):
    """`model.generation.generate` with its model already given."""

    def __call__(
        self,
        requests: Sequence[Request],
        *,
        on_event: Callable[[Event], None],
        should_stop: Callable[[int], bool],
    ) -> list[Reply]: ...


class QueueFullError(Exception):
    """No room to wait.

    Args:
        retry_after: Seconds after which there should be room.
    """

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"the queue is full; try again in {retry_after} seconds")
        self.retry_after = retry_after


class ClosedError(Exception):
    """The engine takes no more work."""


class Engine:
    """A bounded queue in front of a model that one thread runs."""

    def __init__(
        self,
        generate: Generate,
        limits: Limits,
        meters: Meters | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = limits
        self.meters = meters or Meters()
        self.generate = generate
        self._clock = clock
        self._wake = threading.Condition()
        self._waiting: deque[Choice] = deque()
        self._running: list[Choice] = []
        self._closed = False
        self._last_beat = clock()
        self._mean_batch_seconds = 0.0
        self._thread = threading.Thread(target=self._work, name="vargpt-engine", daemon=True)

    def start(self) -> None:
        """Starts the thread that owns the model."""
        self._thread.start()

    def submit(self, requests: Sequence[Request], listener: Listener, *, draws_only: bool = False) -> Job:
        """Puts the choices of one HTTP request into the queue, all or none.

        Args:
            listener: Called from the engine's thread with (index of the choice, updates).
            draws_only: End a choice as soon as its pictures are complete.

        Raises:
            QueueFullError: There is no room.
            ClosedError: The engine drains or has stopped.
        """
        with self._wake:
            self._refuse_when_closed()
            self._sweep()
            if len(self._waiting) + len(requests) > self.limits.queue_length:
                raise QueueFullError(self.retry_after)
            job = Job(requests, listener, self._clock() + self.limits.deadline_seconds, draws_only=draws_only)
            self._waiting.extend(job.choices)
            self._wake.notify()
        return job

    def check_room(self) -> None:
        """Raises what `submit` would raise for one choice: to refuse before a body is read."""
        with self._wake:
            self._refuse_when_closed()
            self._sweep()
            if len(self._waiting) >= self.limits.queue_length:
                raise QueueFullError(self.retry_after)

    def drain(self, seconds: float) -> bool:
        """Takes no more work, finishes what there is; what is left after that time is cancelled.

        Returns:
            Whether everything was finished in time.
        """
        with self._wake:
            self._closed = True
            self._wake.notify()
        if not self._thread.is_alive():
            return True
        self._thread.join(seconds)
        if finished := not self._thread.is_alive():
            return finished
        with self._wake:
            for choice in (*self._waiting, *self._running):
                choice.job.cancel()
        self._thread.join(seconds)
        return False

    @property
    def alive(self) -> bool:
        """Whether the thread runs and has shown progress lately."""
        silent = self._clock() - self._last_beat
        return self._thread.is_alive() and (not self._running or silent < self.limits.stall_seconds)

    @property
    def num_waiting(self) -> int:
        """Choices in the queue."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Choices in the present batch."""
        return len(self._running)

    @property
    def retry_after(self) -> int:
        """Seconds until what waits now has been answered, by the mean of earlier batches; at least 1."""
        num_batches = 1 + math.ceil(len(self._waiting) / self.limits.batch_size)
        return max(1, math.ceil(num_batches * self._mean_batch_seconds))

    def _refuse_when_closed(self) -> None:
        if self._closed or not self._thread.is_alive():
            raise ClosedError("the service is shutting down" if self._closed else "the engine is not running")

    def _sweep(self) -> None:
        """Takes out of the queue what nobody waits for any more; the caller holds the lock."""
        now = self._clock()
        gone = [choice for choice in self._waiting if choice.job.is_over(now)]
        if gone:
            self._waiting = deque(choice for choice in self._waiting if choice not in gone)
        for choice in gone:
            self._give_up(choice)

    def _work(self) -> None:
        while batch := self._next_batch():
            started = self._last_beat
            self._run(batch)
            with self._wake:
                self._running = []
            self._note_duration(self._clock() - started, len(batch))

    def _next_batch(self) -> list[Choice]:
        """Waits for work; empty when there will be none."""
        with self._wake:
            self._sweep()
            while not self._waiting and not self._closed:
                self._wake.wait()
                self._sweep()
            size = min(len(self._waiting), self.limits.batch_size)
            self._last_beat = self._clock()
            self._running = [self._waiting.popleft() for _ in range(size)]
            return self._running

    def _run(self, batch: list[Choice]) -> None:
        def on_event(event: Event) -> None:
            self._last_beat = self._clock()
            batch[event.request_index].on_event(event)

        def should_stop(index: int) -> bool:
            self._last_beat = self._clock()
            return batch[index].should_stop(self._last_beat)

        requests = [choice.request for choice in batch]
        try:
            replies = self.generate(requests, on_event=on_event, should_stop=should_stop)
        except Exception as error:  # the border of the thread: a faulty request must not end the service
            self._recover(batch, error)
            return
        for choice, reply in zip(batch, replies, strict=True):
            self._finish(choice, reply)

    def _recover(self, batch: list[Choice], error: Exception) -> None:
        """Runs the choices one by one, so that only the faulty one fails; too late once anything was sent."""
        if len(batch) > 1 and not any(choice.has_spoken for choice in batch):
            logger.warning("a batch of %d failed (%s); running its choices one by one", len(batch), error)
            for choice in batch:
                self._run([choice])
            return
        if not isinstance(error, ValueError):
            logger.error("generation failed", exc_info=error)
        for choice in batch:
            self.meters.count("choices", outcome="failed")
            choice.notify(error)

    def _finish(self, choice: Choice, reply: Reply) -> None:
        if reply.finish_reason == "cancelled":
            if not choice.is_complete:
                self._give_up(choice)
                return
            reply = replace(reply, finish_reason="stop")
        self.meters.count("choices", outcome="answered")
        self.meters.count("text_tokens", len(reply.token_ids))
        self.meters.count("images", len(reply.images))
        choice.notify(Finished(reply))

    def _give_up(self, choice: Choice) -> None:
        self.meters.count("choices", outcome="cancelled" if choice.job.cancelled else "expired")
        choice.notify(TimeoutError("the deadline has passed"))

    def _note_duration(self, seconds: float, size: int) -> None:
        self.meters.observe("batch_seconds", seconds)
        self.meters.observe("batch_size", size)
        mean = self._mean_batch_seconds
        self._mean_batch_seconds = seconds if mean == 0 else mean + SMOOTHING * (seconds - mean)
