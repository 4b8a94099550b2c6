"""Request handlers of POST /v1/chat/completions and POST /v1/images/generations."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from serving.errors import deadline_passed
from serving.job_stream import JobStream
from serving.jobs import JobOptions
from serving.loaded_model import LoadedModel
from serving.replies import ChatReplyFormat, images_body
from serving.request_body import BodyReader, Schema, parse_body
from serving.request_log import RequestRecord, record_of
from serving.schemas import ChatRequest, ImagesRequest
from serving.stop_strings import find_stop
from serving.streaming import EventStreamResponse, stream_chat, stream_pictures

if TYPE_CHECKING:  # types alone: the HTTP API starts without waiting for torch
    from model.generation.generate import Reply
    from model.generation.generate import Request as Prompt

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class ChatPlan:
    """What is left of a chat request when its prompts are written: neither its texts nor its pictures."""

    prompts: list[Prompt]
    reply_format: ChatReplyFormat
    streams: bool
    draws_only: bool
    stops: tuple[str, ...]


async def answer_chat(model: LoadedModel, bodies: BodyReader, http: Request) -> Response:
    """Answers a chat request, streamed or whole."""
    record = record_of(http)
    plan = await _read(model, bodies, http, ChatRequest, _plan_chat)
    options = _options(record, draws_only=plan.draws_only)
    if plan.stops:
        options = replace(options, is_stop=_stop_check(model, plan.stops))
    # Started here and not in the stream, so that a full queue is still a status and not an event.
    job_stream = _start(model, plan.prompts, options, record)
    replies = job_stream.replies
    if plan.draws_only:
        replies = partial(_replies_with_pictures, model, job_stream, record)
    if not plan.streams:
        return await _unless_gone(http, _completion(model, plan, replies, record))
    if plan.draws_only:
        events = stream_pictures(model, plan.reply_format, replies, len(plan.prompts), record)
    else:
        events = stream_chat(model, plan.reply_format, job_stream, plan.stops, record)
    return EventStreamResponse(events)


async def answer_images(model: LoadedModel, bodies: BodyReader, http: Request) -> Response:
    """Draws n pictures of a prompt."""
    record = record_of(http)
    prompts = await _read(model, bodies, http, ImagesRequest, _plan_images)
    job_stream = _start(model, prompts, _options(record, draws_only=True), record)
    return await _unless_gone(http, _images(model, job_stream, record))


async def _read(
    model: LoadedModel,
    bodies: BodyReader,
    http: Request,
    schema: type[Schema],
    plan: Callable[[LoadedModel, Schema], Result],
) -> Result:
    """Reads and parses the body and writes its prompts: in a thread, and only for a few requests at once."""
    record, limits = record_of(http), model.engine.limits
    content_type = http.headers.get("content-type", "")

    def prepare() -> Result:
        parsed = parse_body(body, content_type, schema, limits)
        return plan(model, parsed)

    async def wait_and_prepare() -> Result:
        try:
            async with asyncio.timeout(record.seconds_left), bodies.preparation_slots:
                return await run_in_threadpool(prepare)
        except TimeoutError:
            raise deadline_passed(limits.deadline_seconds) from None

    async with bodies.read(http) as body:
        return await _unless_gone(http, wait_and_prepare())


def _plan_chat(model: LoadedModel, body: ChatRequest) -> ChatPlan:
    model.check_name(body.model)
    prompts = model.request_builder.chat_requests(body)
    reply_format = ChatReplyFormat(
        model=model.info.id,
        seed=prompts[0].params.seed,
        in_parts=body.response_content == "parts",
        with_text="text" in body.modalities,
        with_usage=body.stream_options is not None and body.stream_options.include_usage,
    )
    return ChatPlan(
        prompts=prompts,
        reply_format=reply_format,
        streams=body.stream,
        draws_only=body.draws_only,
        stops=() if body.draws_only else tuple(body.stop),
    )


def _plan_images(model: LoadedModel, body: ImagesRequest) -> list[Prompt]:
    model.check_name(body.model)
    return model.request_builder.image_requests(body)


def _options(record: RequestRecord, *, draws_only: bool) -> JobOptions:
    return JobOptions(
        request_id=record.request_id,
        arrived=record.arrived,
        deadline=record.deadline,
        draws_only=draws_only,
    )


def _stop_check(model: LoadedModel, stops: tuple[str, ...]) -> Callable[[list[int]], bool]:
    return lambda token_ids: find_stop(model.processor.text(token_ids), stops) is not None


def _start(
    model: LoadedModel, prompts: list[Prompt], options: JobOptions, record: RequestRecord
) -> JobStream:
    job_stream = JobStream(model.engine, prompts, options)
    record.jobs.append(job_stream.job)
    return job_stream


async def _replies_with_pictures(
    model: LoadedModel, job_stream: JobStream, record: RequestRecord
) -> list[Reply]:
    """Replies that each hold a picture.

    The model first answers in its own way, for it draws best after it has said what it will draw; where it
    has only written, a second try starts with a picture.
    """
    replies = await job_stream.replies()
    missing = [index for index, reply in enumerate(replies) if not reply.images]
    if missing:
        forced = [replace(job_stream.requests[index], force_image=True) for index in missing]
        second = await _start(model, forced, job_stream.options, record).replies()
        for index, reply in zip(missing, second, strict=True):
            assert reply.images, "a prompt that must draw leaves room for a picture"
            replies[index] = reply
    return replies


async def _completion(
    model: LoadedModel, plan: ChatPlan, replies: Callable[[], Awaitable[list[Reply]]], record: RequestRecord
) -> Response:
    record.replies = done = await replies()

    def write() -> Response:
        choices = [model.processor.parts(reply.token_ids, reply.images, plan.stops) for reply in done]
        return JSONResponse(plan.reply_format.completion(choices, done))

    return await run_in_threadpool(write)


async def _images(model: LoadedModel, job_stream: JobStream, record: RequestRecord) -> Response:
    record.replies = done = await _replies_with_pictures(model, job_stream, record)
    seed = job_stream.requests[0].params.seed

    def write() -> Response:
        choices = [model.processor.parts(reply.token_ids, reply.images) for reply in done]
        pictures = [next(part for part in parts if not isinstance(part, str)) for parts in choices]
        return JSONResponse(images_body(pictures, done, seed))

    return await run_in_threadpool(write)


async def _unless_gone(http: Request, work: Awaitable[Result]) -> Result:
    """Waits for the work, but gives it up when the client hangs up.

    Raises:
        ClientDisconnect: The client has gone.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_hang_up(http))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.wait((working, watching))


async def _hang_up(http: Request) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass
