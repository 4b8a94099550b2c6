"""What waits in the engine's queue: a job is one HTTP request, a choice is one reply to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # types alone: the HTTP face starts without waiting for torch
    from model.generation.generate import Event, Reply, Request


@dataclass(frozen=True)
class Finished:
    """The last updates of a choice that went well."""

    reply: Reply


Listener = Callable[[int, Any], None]  # index of the choice; Event, Finished or an exception


class Job:
    """The choices of one HTTP request and whether anybody still waits for them.

    Args:
        deadline: On the engine's clock.
        draws_only: A choice ends as soon as its pictures are complete.
    """

    def __init__(
        self, requests: Sequence[Request], listener: Listener, deadline: float, *, draws_only: bool = False
    ) -> None:
        self.listener = listener
        self.deadline = deadline
        self.draws_only = draws_only
        self.cancelled = False
        self.choices = [Choice(self, index, request) for index, request in enumerate(requests)]

    def cancel(self) -> None:
        """Nobody waits any more; the engine stops at the next step. Safe from any thread."""
        self.cancelled = True

    def is_over(self, now: float) -> bool:
        """Whether to go on would be work for nobody."""
        return self.cancelled or now >= self.deadline


class Choice:
    """One reply in the making."""

    def __init__(self, job: Job, index: int, request: Request) -> None:
        self.job = job
        self.index = index
        self.request = request
        self.has_spoken = False
        self._num_images = 0

    @property
    def is_complete(self) -> bool:
        """Whether everything that was wanted is there before the model has ended by itself."""
        return self.job.draws_only and self._num_images >= self.request.params.max_images

    def should_stop(self, now: float) -> bool:
        """Whether the engine should not take another step."""
        return self.is_complete or self.job.is_over(now)

    def on_event(self, event: Event) -> None:
        """Notes and passes on what the model did."""
        self.has_spoken = True
        self._num_images += event.type == "image"
        self.notify(event)

    def notify(self, updates: Event | Finished | Exception) -> None:
        """Passes updates to whoever waits, unless nobody does; all but an event is the last."""
        if not self.job.cancelled:
            self.job.listener(self.index, updates)
