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

from serving.backend import Backend
from serving.errors import ApiError
from serving.exchange import HEARTBEAT, Exchange
from serving.jobs import Finished
from serving.replies import DONE, HEARTBEAT_LINE, ChatShape, drawing, event
from serving.schemas import ChatRequest, ImagesRequest
from serving.transcript import Transcript

if TYPE_CHECKING:  # types alone: the HTTP face starts without waiting for torch
    from model.generation import Reply
    from model.generation import Request as Prompt

Body = TypeVar("Body", ChatRequest, ImagesRequest)
CLIENT_GONE = 499  # nobody reads it; it only shows in the access log
STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


async def answer_chat(backend: Backend, body: ChatRequest, http: Request) -> Response:
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
    exchange = Exchange(backend.engine, prompts, draws_only=body.draws_only)
    if body.stream:
        lines = _stream_pictures if body.draws_only else _stream
        return StreamingResponse(
            lines(backend, shape, exchange), media_type="text/event-stream", headers=STREAM_HEADERS
        )
    replies = _pictures(backend, exchange) if body.draws_only else _replies(exchange)
    return await _unless_gone(http, _write_completion(backend, shape, replies))


async def answer_images(backend: Backend, body: ImagesRequest, http: Request) -> Response:
    """Draws n pictures of a prompt."""
    backend.check_model(body.model)
    prompts = await _prepare(backend, backend.prompts.drawing, body)
    replies = _pictures(backend, Exchange(backend.engine, prompts, draws_only=True))
    return await _unless_gone(http, _write_drawing(backend, replies, seed=prompts[0].params.seed))


async def _prepare(backend: Backend, write: Callable[[Body], list[Prompt]], body: Body) -> list[Prompt]:
    """Decodes pictures and splits words beside the event loop, and only for a few requests at once."""
    async with backend.preparing:
        return await run_in_threadpool(write, body)


async def _replies(exchange: Exchange) -> list[Reply]:
    async with exchange:
        return await exchange.replies()


async def _pictures(backend: Backend, exchange: Exchange) -> list[Reply]:
    """Replies that each hold a picture.

    The model first answers in its own way, for it draws best after it has said what it will draw; where it
    has only written, a second try starts with a picture.
    """
    replies = await _replies(exchange)
    missing = [index for index, reply in enumerate(replies) if not reply.images]
    if missing:
        forced = [replace(exchange.requests[index], force_image=True) for index in missing]
        second = await _replies(Exchange(backend.engine, forced, draws_only=True, deadline=exchange.deadline))
        for index, reply in zip(missing, second, strict=True):
            replies[index] = reply
    return replies


async def _write_completion(backend: Backend, shape: ChatShape, replies: Awaitable[list[Reply]]) -> Response:
    done = await replies

    def write() -> Response:
        choices = [backend.processor.pieces(reply.token_ids, reply.images) for reply in done]
        return JSONResponse(shape.completion(choices, done))

    return await run_in_threadpool(write)


async def _write_drawing(backend: Backend, replies: Awaitable[list[Reply]], seed: int) -> Response:
    done = await replies

    def write() -> Response:
        choices = [backend.processor.pieces(reply.token_ids, reply.images) for reply in done]
        pictures = [next(piece for piece in pieces if not isinstance(piece, str)) for pieces in choices]
        return JSONResponse(drawing(pictures, done, seed))

    return await run_in_threadpool(write)


async def _stream(backend: Backend, shape: ChatShape, exchange: Exchange) -> AsyncIterator[str]:
    """The lines of a stream; a failure in the middle is an event, for the status has been sent."""
    transcripts = [Transcript(backend.processor, in_parts=shape.in_parts) for _ in exchange.requests]
    replies: dict[int, Reply] = {}
    async with exchange:
        for index in range(len(transcripts)):
            yield shape.opening(index)
        try:
            async for item in exchange.news():
                if item is HEARTBEAT:
                    yield HEARTBEAT_LINE
                    continue
                index, news = item
                is_last = isinstance(news, Finished)
                for piece in transcripts[index].close() if is_last else transcripts[index].hear(news):
                    if shape.wants(piece):
                        yield shape.piece(index, piece)
                if is_last:
                    replies[index] = news.reply
                    yield shape.closing(index, news.reply.finish_reason)
        except ApiError as error:
            yield event(error.body)
        else:
            if shape.with_usage:
                yield shape.usage_chunk([replies[index] for index in range(len(replies))])
        yield DONE


async def _stream_pictures(backend: Backend, shape: ChatShape, exchange: Exchange) -> AsyncIterator[str]:
    """A stream of pictures alone; whether a choice needs a second try is known at its end."""
    for index in range(len(exchange.requests)):
        yield shape.opening(index)
    working = asyncio.ensure_future(_pictures(backend, exchange))
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
