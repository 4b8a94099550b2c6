"""POST /v1/chat/completions and /v1/images/generations: from a checked body to an answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from serving.errors import ApiError
from serving.job_stream import HEARTBEAT, JobStream
from serving.jobs import Finished
from serving.loaded_model import LoadedModel
from serving.replies import DONE, HEARTBEAT_LINE, ChatShape, drawing, event
from serving.schemas import ChatRequest, ImagesRequest
from serving.stream_decoder import StreamDecoder

if TYPE_CHECKING:  # types alone: the HTTP face starts without waiting for torch
    from model.generation.generate import Reply
    from model.generation.generate import Request as Prompt

Body = TypeVar("Body", ChatRequest, ImagesRequest)
CLIENT_GONE = 499  # nobody reads it; it only shows in the access log
STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


async def answer_chat(backend: LoadedModel, body: ChatRequest, http: Request) -> Response:
    """Answers a chat request, streamed or whole."""
    backend.check_model(body.model)
    prompts = await _prepare(backend, backend.prompts.chat, body)
    shape = ChatShape(
        model=backend.card.id,
        seed=prompts[0].params.seed,
        in_parts=body.response_content == "parts",
        texts="text" in body.modalities,
        with_usage=body.stream_options is not None and body.stream_options.include_usage,
    )
    # Started here and not in the stream, so that a full queue is still a status and not an event.
    job_stream = JobStream(backend.engine, prompts, draws_only=body.draws_only)
    if body.stream:
        lines = _stream_pictures if body.draws_only else _stream
        return StreamingResponse(
            lines(backend, shape, job_stream), media_type="text/event-stream", headers=STREAM_HEADERS
        )
    replies = _pictures(backend, job_stream) if body.draws_only else _replies(job_stream)
    return await _unless_gone(http, _write_completion(backend, shape, replies))


async def answer_images(backend: LoadedModel, body: ImagesRequest, http: Request) -> Response:
    """Draws n pictures of a prompt."""
    backend.check_model(body.model)
    prompts = await _prepare(backend, backend.prompts.drawing, body)
    replies = _pictures(backend, JobStream(backend.engine, prompts, draws_only=True))
    return await _unless_gone(http, _write_drawing(backend, replies, seed=prompts[0].params.seed))


async def _prepare(backend: LoadedModel, write: Callable[[Body], list[Prompt]], body: Body) -> list[Prompt]:
    """Decodes pictures and splits words beside the event loop, and only for a few requests at once."""
    async with backend.preparing:
        return await run_in_threadpool(write, body)


async def _replies(job_stream: JobStream) -> list[Reply]:
    async with job_stream:
        return await job_stream.replies()


async def _pictures(backend: LoadedModel, job_stream: JobStream) -> list[Reply]:
    """Replies that each hold a picture.

    The model first answers in its own way, for it draws best after it has said what it will draw; where it
    has only written, a second try starts with a picture.
    """
    replies = await _replies(job_stream)
    missing = [index for index, reply in enumerate(replies) if not reply.images]
    if missing:
        forced = [replace(job_stream.requests[index], force_image=True) for index in missing]
        second = await _replies(
            JobStream(backend.engine, forced, draws_only=True, deadline=job_stream.deadline)
        )
        for index, reply in zip(missing, second, strict=True):
            replies[index] = reply
    return replies


async def _write_completion(
    backend: LoadedModel, shape: ChatShape, replies: Awaitable[list[Reply]]
) -> Response:
    done = await replies

    def write() -> Response:
        choices = [backend.processor.pieces(reply.token_ids, reply.images) for reply in done]
        return JSONResponse(shape.completion(choices, done))

    return await run_in_threadpool(write)


async def _write_drawing(backend: LoadedModel, replies: Awaitable[list[Reply]], seed: int) -> Response:
    done = await replies

    def write() -> Response:
        choices = [backend.processor.pieces(reply.token_ids, reply.images) for reply in done]
        pictures = [next(piece for piece in pieces if not isinstance(piece, str)) for pieces in choices]
        return JSONResponse(drawing(pictures, done, seed))

    return await run_in_threadpool(write)


async def _stream(backend: LoadedModel, shape: ChatShape, job_stream: JobStream) -> AsyncIterator[str]:
    """The lines of a stream; a failure in the middle is an event, for the status has been sent."""
    stream_decoders = [StreamDecoder(backend.processor, in_parts=shape.in_parts) for _ in job_stream.requests]
    replies: dict[int, Reply] = {}
    async with job_stream:
        for index in range(len(stream_decoders)):
            yield shape.opening(index)
        try:
            async for item in job_stream.updates():
                if item is HEARTBEAT:
                    yield HEARTBEAT_LINE
                    continue
                index, updates = item
                is_last = isinstance(updates, Finished)
                for piece in (
                    stream_decoders[index].close() if is_last else stream_decoders[index].on_event(updates)
                ):
                    if shape.wants(piece):
                        yield shape.piece(index, piece)
                if is_last:
                    replies[index] = updates.reply
                    yield shape.closing(index, updates.reply.finish_reason)
        except ApiError as error:
            yield event(error.body)
        else:
            if shape.with_usage:
                yield shape.usage_chunk([replies[index] for index in range(len(replies))])
        yield DONE


async def _stream_pictures(
    backend: LoadedModel, shape: ChatShape, job_stream: JobStream
) -> AsyncIterator[str]:
    """A stream of pictures alone; whether a choice needs a second try is known at its end."""
    for index in range(len(job_stream.requests)):
        yield shape.opening(index)
    working = asyncio.ensure_future(_pictures(backend, job_stream))
    try:
        while not working.done():
            await asyncio.wait((working,), timeout=backend.engine.limits.heartbeat_seconds)
            if not working.done():
                yield HEARTBEAT_LINE
        replies = working.result()
        for index, reply in enumerate(replies):
            for piece in filter(shape.wants, backend.processor.pieces(reply.token_ids, reply.images)):
                yield shape.piece(index, piece)
            yield shape.closing(index, reply.finish_reason)
    except ApiError as error:
        yield event(error.body)
    else:
        if shape.with_usage:
            yield shape.usage_chunk(replies)
    finally:
        working.cancel()
    yield DONE


async def _unless_gone(http: Request, answer: Awaitable[Response]) -> Response:
    """Waits for the answer, but gives it up when the client hangs up."""
    working = asyncio.ensure_future(answer)
    watching = asyncio.ensure_future(_hang_up(http))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else Response(status_code=CLIENT_GONE)
    finally:
        for task in (working, watching):
            task.cancel()


async def _hang_up(http: Request) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass
