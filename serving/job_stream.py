"""The bridge between an HTTP request, which waits, and the engine's thread, which works."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from serving.engine import ClosedError, Engine, QueueFullError
from serving.errors import ApiError, bad_request, deadline_passed
from serving.jobs import Finished

if TYPE_CHECKING:  # types alone: the HTTP face starts without waiting for torch
    from model.generation.generate import Event, Reply, Request

HEARTBEAT = None  # what `updates` yields when there has been none for a while


class JobStream:
    """One job and its updates; leaving the `async with` block cancels what still runs.

    Args:
        draws_only: A choice ends as soon as its pictures are complete.
        deadline: On the clock of the event loop; by default as far away as the limits allow.
    """

    def __init__(
        self,
        engine: Engine,
        requests: Sequence[Request],
        *,
        draws_only: bool = False,
        deadline: float | None = None,
    ) -> None:
        self.requests = requests
        self._limits = engine.limits
        self._meters = engine.meters
        self._loop = asyncio.get_running_loop()
        self._inbox: asyncio.Queue[tuple[int, Event | Finished | Exception]] = asyncio.Queue()
        self._started = self._loop.time()
        self.deadline = self._started + self._limits.deadline_seconds if deadline is None else deadline
        self._num_open = len(requests)
        self._has_spoken = False
        try:
            self._job = engine.submit(requests, self._listen, draws_only=draws_only)
        except (QueueFullError, ClosedError) as error:
            raise refusal(engine, error) from None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._job.cancel()

    async def updates(self) -> AsyncIterator[tuple[int, Event | Finished] | None]:
        """Yields (index of the choice, event or reply) until every choice has its reply, and heartbeats.

        Raises:
            ApiError: The deadline has passed or a choice has failed.
        """
        while self._num_open:
            left = self.deadline - self._loop.time()
            if left <= 0:
                raise deadline_passed(self._limits.deadline_seconds)
            try:
                async with asyncio.timeout(min(left, self._limits.heartbeat_seconds)):
                    index, updates = await self._inbox.get()
            except TimeoutError:
                yield HEARTBEAT
                continue
            if isinstance(updates, Exception):
                raise _failure(updates, self._limits.deadline_seconds)
            self._note(updates)
            yield index, updates

    async def replies(self) -> list[Reply]:
        """Waits for the replies of all choices, in their order."""
        replies: dict[int, Reply] = {}
        async for item in self.updates():
            if item is not HEARTBEAT and isinstance(item[1], Finished):
                replies[item[0]] = item[1].reply
        return [replies[index] for index in sorted(replies)]

    def _listen(self, index: int, updates: Event | Finished | Exception) -> None:
        """Runs in the engine's thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._inbox.put_nowait, (index, updates))

    def _note(self, updates: Event | Finished) -> None:
        seconds = self._loop.time() - self._started
        if not self._has_spoken:
            self._has_spoken = True
            self._meters.observe("first_token_seconds", seconds)
        if isinstance(updates, Finished):
            self._num_open -= 1
            self._meters.observe("reply_seconds", seconds)


def refusal(engine: Engine, error: QueueFullError | ClosedError) -> ApiError:
    """What a client hears when the engine takes no work."""
    if isinstance(error, QueueFullError):
        engine.meters.count("refused", reason="queue_full")
        return ApiError(429, str(error), code="queue_full", retry_after=error.retry_after)
    engine.meters.count("refused", reason="closed")
    return ApiError(503, str(error), code="shutting_down", retry_after=engine.retry_after)


def _failure(error: Exception, deadline_seconds: float) -> ApiError:
    if isinstance(error, TimeoutError):
        return deadline_passed(deadline_seconds)
    if isinstance(error, ValueError):
        return bad_request(str(error))
    return ApiError(500, "the model failed on this request", code="generation_failed")
