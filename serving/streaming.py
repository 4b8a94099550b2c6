"""Server-sent event streams of chat replies."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING

from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse
from starlette.types import Send

from serving.errors import ApiError
from serving.job_stream import JobStream
from serving.jobs import Finished
from serving.loaded_model import LoadedModel
from serving.replies import DONE, HEARTBEAT, ChatReplyFormat, event
from serving.request_log import RequestRecord
from serving.stream_decoder import StreamDecoder

if TYPE_CHECKING:  # types alone: the HTTP API starts without waiting for torch
    from model.generation.generate import Event, Reply

STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class EventStreamResponse(StreamingResponse):
    """A stream of events whose generator is closed at once when the client has gone or does not read."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[str]) -> None:
        super().__init__(events, headers=STREAM_HEADERS)

    async def stream_response(self, send: Send) -> None:
        async with aclosing(self.body_iterator):
            await super().stream_response(send)


class _EventWriter:
    """Turns updates of the choices of one request into events; decodes text and encodes pictures."""

    def __init__(
        self, model: LoadedModel, reply_format: ChatReplyFormat, number: int, stops: Sequence[str]
    ) -> None:
        self._format = reply_format
        self._decoders = [
            StreamDecoder(model.processor, in_parts=reply_format.in_parts, stops=stops) for _ in range(number)
        ]
        self._replies: dict[int, Reply] = {}

    @property
    def replies(self) -> list[Reply]:
        """Of the choices that have ended, in their order."""
        return [self._replies[index] for index in sorted(self._replies)]

    def events(self, updates: Sequence[tuple[int, Event | Finished]]) -> str:
        """What to send next; not for the event loop, since it takes time."""
        return "".join(event for index, update in updates for event in self._events_of(index, update))

    def _events_of(self, index: int, update: Event | Finished) -> list[str]:
        decoder, reply_format = self._decoders[index], self._format
        is_last = isinstance(update, Finished)
        parts = decoder.close() if is_last else decoder.on_event(update)
        events = [reply_format.part_event(index, part) for part in parts if reply_format.wants(part)]
        if is_last:
            self._replies[index] = update.reply
            events.append(reply_format.last_event(index, update.reply.finish_reason))
        return events


async def stream_chat(
    model: LoadedModel,
    reply_format: ChatReplyFormat,
    job_stream: JobStream,
    stops: Sequence[str],
    record: RequestRecord,
) -> AsyncIterator[str]:
    """Events of a chat as its tokens come; a failure in the middle is an event, for the status is sent."""
    writer = _EventWriter(model, reply_format, len(job_stream.requests), stops)
    heartbeat_seconds, last_sent = model.engine.limits.heartbeat_seconds, time.monotonic()
    for index in range(len(job_stream.requests)):
        yield reply_format.first_event(index)
    try:
        async with aclosing(job_stream.updates()) as all_updates:
            async for updates in all_updates:
                # One send for all that has come meanwhile: a slow reader does not put off the deadline.
                events = await run_in_threadpool(writer.events, updates)
                if events or time.monotonic() - last_sent >= heartbeat_seconds:
                    yield events or HEARTBEAT
                    last_sent = time.monotonic()
    except ApiError as error:
        record.outcome = error.code
        yield event(error.body)
    else:
        record.replies = writer.replies
        if reply_format.with_usage:
            yield reply_format.usage_event(writer.replies)
    yield DONE


async def stream_pictures(
    model: LoadedModel,
    reply_format: ChatReplyFormat,
    replies: Callable[[], Awaitable[list[Reply]]],
    number: int,
    record: RequestRecord,
) -> AsyncIterator[str]:
    """Events of a chat of which only pictures are wanted: all at the end, and heartbeats until then."""
    for index in range(number):
        yield reply_format.first_event(index)
    waiting = asyncio.ensure_future(replies())

    def events(index: int, reply: Reply) -> str:
        parts = filter(reply_format.wants, model.processor.parts(reply.token_ids, reply.images))
        return "".join(reply_format.part_event(index, part) for part in parts)

    try:
        while not waiting.done():
            await asyncio.wait((waiting,), timeout=model.engine.limits.heartbeat_seconds)
            if not waiting.done():
                yield HEARTBEAT
        record.replies = waiting.result()
        for index, reply in enumerate(record.replies):
            yield await run_in_threadpool(events, index, reply)
            yield reply_format.last_event(index, reply.finish_reason)
    except ApiError as error:
        record.outcome = error.code
        yield event(error.body)
    else:
        if reply_format.with_usage:
            yield reply_format.usage_event(record.replies)
    finally:
        waiting.cancel()
    yield DONE
