"""Asynchronous view of an engine's job: an HTTP request waits for updates that the engine's thread sends."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

from model.errors import UserError
from serving.engine import BrokenError, ClosedError, Engine, QueueFullError
from serving.errors import ApiError, bad_request, deadline_passed
from serving.jobs import Finished, JobOptions

if TYPE_CHECKING:  # types alone: the HTTP API starts without waiting for torch
    from model.generation.generate import Event, Reply, Request


class JobStream:
    """One job and its updates; whoever has started it also cancels it.

    Raises ApiError when the engine takes no work.
    """

    def __init__(self, engine: Engine, requests: Sequence[Request], options: JobOptions) -> None:
        self.requests = requests
        self.options = options
        self._limits = engine.limits
        self._loop = asyncio.get_running_loop()
        self._inbox: asyncio.Queue[tuple[int, Event | Finished | Exception]] = asyncio.Queue()
        self._num_open = len(requests)
        try:
            self.job = engine.submit(requests, self._listen, options)
        except (QueueFullError, ClosedError, BrokenError) as error:
            raise refusal(engine, error) from None

    async def updates(self) -> AsyncIterator[list[tuple[int, Event | Finished]]]:
        """Yields what has come, as (index of the choice, event or reply), until every choice has its reply.

        The list is empty when nothing has come for a while: time for a heartbeat.

        Raises:
            ApiError: The deadline has passed or a choice has failed.
        """
        while self._num_open:
            good: list[tuple[int, Event | Finished]] = []
            failure: Exception | None = None
            for index, update in await self._receive():
                if isinstance(update, Exception):
                    failure = update
                    break
                self._num_open -= isinstance(update, Finished)
                good.append((index, update))
            if good or failure is None:
                yield good
            if failure is not None:
                raise _as_api_error(failure, self._limits.deadline_seconds)

    async def replies(self) -> list[Reply]:
        """Waits for the replies of all choices, in their order."""
        replies: dict[int, Reply] = {}
        async for updates in self.updates():
            replies |= {index: update.reply for index, update in updates if isinstance(update, Finished)}
        return [replies[index] for index in sorted(replies)]

    async def _receive(self) -> list[tuple[int, Event | Finished | Exception]]:
        """Everything that has come, or nothing after the time between heartbeats."""
        left = self.options.deadline - time.monotonic()
        if left <= 0:
            raise deadline_passed(self._limits.deadline_seconds)
        received = []
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(left, self._limits.heartbeat_seconds)):
                received.append(await self._inbox.get())
        while not self._inbox.empty():
            received.append(self._inbox.get_nowait())
        return received

    def _listen(self, index: int, update: Event | Finished | Exception) -> None:
        """Runs in the engine's thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: the server has stopped
            self._loop.call_soon_threadsafe(self._inbox.put_nowait, (index, update))


def refusal(engine: Engine, error: QueueFullError | ClosedError | BrokenError) -> ApiError:
    """What a client hears when the engine takes no work."""
    if isinstance(error, QueueFullError):
        return ApiError(429, str(error), code="queue_full", retry_after=error.retry_after)
    code = "model_broken" if isinstance(error, BrokenError) else "shutting_down"
    return ApiError(503, str(error), code=code, retry_after=engine.retry_after)


def _as_api_error(error: Exception, deadline_seconds: float) -> ApiError:
    if isinstance(error, TimeoutError):
        return deadline_passed(deadline_seconds)
    if isinstance(error, UserError):
        return bad_request(str(error))
    if isinstance(error, BrokenError):
        return ApiError(503, str(error), code="model_broken", retry_after=1)
    return ApiError(500, "the model failed on this request", code="generation_failed")
