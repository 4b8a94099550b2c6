"""Units of work in the engine's queue: a job is one HTTP request, a choice is one reply to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # types alone: the HTTP API starts without waiting for torch
    from model.generation.generate import Event, Reply, Request


@dataclass(frozen=True)
class Finished:
    """The last update of a choice that went well."""

    reply: Reply


# Is given the index of a choice and its update: Event, then Finished or an exception as the last one.
Listener = Callable[[int, Any], None]


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """What the engine needs to know of an HTTP request beside its prompts.

    Args:
        request_id: Stands in the log beside a fault.
        arrived, deadline: On the monotonic clock, in seconds.
        draws_only: A choice ends as soon as its pictures are complete.
        is_stop: Given the token ids since the last picture; True ends the choice.
    """

    request_id: str
    arrived: float
    deadline: float
    draws_only: bool = False
    is_stop: Callable[[Sequence[int]], bool] | None = None


class Job:
    """The choices of one HTTP request, whether anybody still waits for them, and when they began."""

    def __init__(
        self, requests: Sequence[Request], listener: Listener, options: JobOptions, submitted: float
    ) -> None:
        self.listener = listener
        self.options = options
        self.submitted = submitted
        self.started: float | None = None  # the first choice has left the queue
        self.first_token: float | None = None
        self.cancelled = False
        self.choices = [Choice(self, index, request) for index, request in enumerate(requests)]

    def cancel(self) -> None:
        """Nobody waits any more; the engine stops at the next step. Safe from any thread."""
        self.cancelled = True

    def is_over(self, now: float) -> bool:
        """Whether to go on would be work for nobody."""
        return self.cancelled or now >= self.options.deadline


class Choice:
    """One reply in the making."""

    def __init__(self, job: Job, index: int, request: Request) -> None:
        self.job = job
        self.index = index
        self.request = request
        self.last_event: tuple[str, float] | None = None  # kind and time
        self._num_images = 0
        self._text_ids: list[int] = []  # since the last picture
        self._has_stopped = False

    @property
    def has_begun(self) -> bool:
        """Whether the model has done anything for it."""
        return self.last_event is not None

    @property
    def is_complete(self) -> bool:
        """Whether everything that was wanted is there before the model has ended by itself."""
        wanted = self.request.params.max_images
        return self._has_stopped or (self.job.options.draws_only and self._num_images >= wanted)

    def should_stop(self, now: float) -> bool:
        """Whether the engine should not take another step."""
        return self.is_complete or self.job.is_over(now)

    def on_event(self, event: Event, now: float) -> None:
        """Notes and passes on what the model did."""
        self.last_event = (event.type, now)
        if event.type == "image":
            self._num_images += 1
            self._text_ids = []
        elif event.type == "token" and (is_stop := self.job.options.is_stop) is not None:
            self._text_ids.append(event.token_id)
            self._has_stopped = is_stop(self._text_ids)
        self.notify(event)

    def notify(self, update: Event | Finished | Exception) -> None:
        """Passes an update to whoever waits, unless nobody does."""
        if not self.job.cancelled:
            self.job.listener(self.index, update)
