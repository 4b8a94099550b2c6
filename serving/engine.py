"""Engine: one thread that owns the model and answers a bounded queue of choices in batches."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from model.errors import UserError
from serving.config import Limits
from serving.jobs import Choice, Finished, Job, JobOptions, Listener
from serving.metrics import EngineMetrics

if TYPE_CHECKING:  # types alone: the HTTP API starts without waiting for torch
    from model.generation.generate import Event, Reply, Request

logger = logging.getLogger(__name__)

SMOOTHING = 0.2  # weight of the newest batch in the running mean of batch durations


class Generate(Protocol):
    """`model.generation.generate.generate` with its model already given."""

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
    """The engine takes no more work, for it is being shut down."""


class BrokenError(Exception):
    """The engine takes no more work, for the device or the model has failed; only a restart helps."""


class Engine:
    """A bounded queue in front of a model that one thread runs.

    Args:
        is_fatal: Whether an error of `generate` means that every further call would fail as well.
    """

    def __init__(
        self, generate: Generate, limits: Limits, is_fatal: Callable[[Exception], bool] = lambda error: False
    ) -> None:
        self.limits = limits
        self.metrics = EngineMetrics()
        self.metrics.watch(queue_length=lambda: self.num_waiting, running=lambda: self.num_running)
        self.generate = generate
        self._is_fatal = is_fatal
        self._wake = threading.Condition()
        self._waiting: deque[Choice] = deque()
        self._running: list[Choice] = []
        self._is_closed = False
        self._is_broken = False
        self._faults_in_a_row = 0
        self._last_progress = time.monotonic()
        self._mean_batch_seconds = 0.0
        self._thread = threading.Thread(target=self._work, name="vargpt-engine", daemon=True)

    def start(self) -> None:
        """Starts the thread that owns the model."""
        self._thread.start()

    def submit(self, requests: Sequence[Request], listener: Listener, options: JobOptions) -> Job:
        """Puts the choices of one HTTP request into the queue, all or none.

        Args:
            listener: Called from the engine's thread.

        Raises:
            QueueFullError: There is no room.
            ClosedError: The engine is being shut down.
            BrokenError: The engine has failed.
        """
        with self._wake:
            self._check_room(len(requests))
            job = Job(requests, listener, options, submitted=time.monotonic())
            self._waiting.extend(job.choices)
            self._wake.notify()
        return job

    def check_room(self) -> None:
        """Raises what `submit` would raise for one choice: to refuse before a body is read."""
        with self._wake:
            self._check_room(1)

    def drain(self, seconds: float) -> bool:
        """Takes no more work, finishes what there is; what is left after that time is cancelled.

        Returns:
            Whether everything was finished in time.
        """
        with self._wake:
            self._is_closed = True
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
    def is_alive(self) -> bool:
        """Whether the engine can work: no fatal fault, and progress lately. If not, only a restart helps."""
        silent = time.monotonic() - self._last_progress
        is_stalled = bool(self._running) and silent >= self.limits.stall_seconds
        return self._thread.is_alive() and not self._is_broken and not is_stalled

    @property
    def is_ready(self) -> bool:
        """Whether the engine takes work."""
        return self.is_alive and not self._is_closed

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

    def _check_room(self, number: int) -> None:
        """The caller holds the lock."""
        if self._is_broken:
            raise BrokenError("the model has failed; the service must be restarted")
        if self._is_closed or not self._thread.is_alive():
            raise ClosedError("the service is shutting down")
        self._drop_abandoned()
        if len(self._waiting) + number > self.limits.queue_length:
            raise QueueFullError(self.retry_after)

    def _drop_abandoned(self) -> None:
        """Takes out of the queue what nobody waits for any more; the caller holds the lock."""
        now = time.monotonic()
        gone = [choice for choice in self._waiting if choice.job.is_over(now)]
        if gone:
            self._waiting = deque(choice for choice in self._waiting if choice not in gone)
        for choice in gone:
            self._abandon(choice)

    def _work(self) -> None:
        while batch := self._next_batch():
            started = self._last_progress
            self._run(batch)
            with self._wake:
                self._running = []
            self._note_duration(time.monotonic() - started, len(batch))
        with self._wake:
            waiting, self._waiting = self._waiting, deque()
        for choice in waiting:
            self._fail(choice, BrokenError("the model has failed on an earlier request"))

    def _next_batch(self) -> list[Choice]:
        """Waits for work; empty when there will be none."""
        with self._wake:
            self._drop_abandoned()
            while not (self._waiting or self._is_closed or self._is_broken):
                self._wake.wait()
                self._drop_abandoned()
            if self._is_broken:
                return []
            size = min(len(self._waiting), self.limits.batch_size)
            self._last_progress = now = time.monotonic()
            self._running = [self._waiting.popleft() for _ in range(size)]
        for choice in self._running:
            choice.job.started = choice.job.started or now
            self.metrics.observe_start(choice, now)
        return self._running

    def _run(self, batch: list[Choice]) -> None:
        def on_event(event: Event) -> None:
            self._last_progress = now = time.monotonic()
            choice = batch[event.request_index]
            choice.job.first_token = choice.job.first_token or now
            self.metrics.observe_event(choice, event, now)
            choice.on_event(event, now)

        def should_stop(index: int) -> bool:
            self._last_progress = now = time.monotonic()
            return batch[index].should_stop(now)

        requests = [choice.request for choice in batch]
        try:
            replies = self.generate(requests, on_event=on_event, should_stop=should_stop)
        except Exception as error:  # the border of the thread: a faulty request must not end the service
            self._recover(batch, error)
            return
        self._faults_in_a_row = 0
        for choice, reply in zip(batch, replies, strict=True):
            self._finish(choice, reply)

    def _recover(self, batch: list[Choice], error: Exception) -> None:
        """Runs the choices one by one, so that only the faulty one fails; too late once anything was sent."""
        is_fatal = self._is_fatal(error)
        if not is_fatal and len(batch) > 1 and not any(choice.has_begun for choice in batch):
            logger.warning("a batch of %d failed (%s); running its choices one by one", len(batch), error)
            for choice in batch:
                if self._is_broken:
                    self._fail(choice, BrokenError("the model has failed on an earlier request"))
                else:
                    self._run([choice])
            return
        if not isinstance(error, UserError):
            self._note_fault(batch, error, is_fatal=is_fatal)
        for choice in batch:
            self._fail(choice, error)

    def _note_fault(self, batch: list[Choice], error: Exception, *, is_fatal: bool) -> None:
        request_ids = ", ".join(sorted({choice.job.options.request_id for choice in batch}))
        logger.error("generation failed for request %s", request_ids, exc_info=error)
        self._faults_in_a_row += 1
        if is_fatal or self._faults_in_a_row >= self.limits.faults_in_a_row:
            logger.critical("the engine has stopped after %d faults in a row", self._faults_in_a_row)
            self._is_broken = True

    def _finish(self, choice: Choice, reply: Reply) -> None:
        if reply.finish_reason == "cancelled":
            if not choice.is_complete:
                self._abandon(choice)
                return
            reply = replace(reply, finish_reason="stop")
        self.metrics.observe_reply(choice, reply, time.monotonic())
        choice.notify(Finished(reply))

    def _fail(self, choice: Choice, error: Exception) -> None:
        self.metrics.choices.labels(outcome="failed").inc()
        choice.notify(error)

    def _abandon(self, choice: Choice) -> None:
        self.metrics.choices.labels(outcome="cancelled" if choice.job.cancelled else "expired").inc()
        choice.notify(TimeoutError("the deadline has passed"))

    def _note_duration(self, seconds: float, size: int) -> None:
        self.metrics.observe_batch(size, seconds)
        mean = self._mean_batch_seconds
        self._mean_batch_seconds = seconds if mean == 0 else mean + SMOOTHING * (seconds - mean)
