"""Every request has an id, one line in the log, and an end: clients that do not read or go hold nothing."""

import asyncio
import json
import logging
from collections.abc import Callable
from typing import Any

import pytest

from serving.config import Limits
from serving.loaded_model import LoadedModel
from tests.serving.asgi import AsgiCall, chunks_of, in_background, until
from tests.serving.parts import (
    CHAT,
    DRAW,
    SHORT,
    WORD,
    HeldProcessor,
    ScriptedGenerate,
    asking,
    held,
    http_client,
    json_bytes,
    new_app,
    running,
    with_processor,
)

SECRET = "a very private question"
LONG = asking(stream=True, max_tokens=400, temperature=1.0, image={"max_images": 0})


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[dict[str, Any]]]:
    """The request log, parsed."""
    caplog.set_level(logging.INFO, "serving.request_log")
    return lambda: [json.loads(r.getMessage()) for r in caplog.records if r.name == "serving.request_log"]


def test_a_client_that_stops_reading_is_given_up_and_its_place_is_free(
    loaded_model: LoadedModel, lines: Callable
):
    generate = ScriptedGenerate([WORD] * 100_000, step_seconds=0.001)

    async def scenario() -> None:
        with running(loaded_model, generate, send_seconds=0.3, open_requests=1) as model:
            app = new_app(model)
            slow = AsgiCall(chunks_of(LONG), reads=4)
            await asyncio.wait_for(slow(app), 30)
            await until(lambda: model.engine.num_running == 0)
            other = AsgiCall(chunks_of({**SHORT, "n": 9}))
            await other(app)
            assert (slow.status, other.status) == (200, 400)
            assert not slow.gone.is_set()

    asyncio.run(scenario())

    assert generate.num_steps < 100_000
    assert lines()[0]["outcome"] == "slow_reader"


def test_a_client_that_reads_slowly_is_cut_off_after_its_deadline(loaded_model: LoadedModel):
    async def scenario() -> int:
        with running(
            loaded_model,
            ScriptedGenerate([WORD] * 100_000, step_seconds=0.001),
            send_seconds=1.0,
            deadline_seconds=0.5,
        ) as model:
            slow = AsgiCall(chunks_of(LONG), read_seconds=0.8)
            async with asyncio.timeout(30):
                await slow(new_app(model))
            await until(lambda: model.engine.num_running == 0)
            return len(slow.messages)

    assert asyncio.run(scenario()) < 3  # without an end of its own each send may take a second


def test_the_deadline_counts_from_arrival_and_not_from_the_last_byte(loaded_model: LoadedModel):
    async def scenario() -> AsgiCall:
        with held(loaded_model, deadline_seconds=0.4) as (generate, model):
            body = json_bytes(SHORT)
            call = AsgiCall(iter([bytes(body[:9]), bytes(body[9:]), b""]), chunk_seconds=0.25)
            await asyncio.wait_for(call(new_app(model)), 30)
            assert not generate.batches
            return call

    call = asyncio.run(scenario())

    assert (call.status, call.body["error"]["code"]) == (504, "deadline_exceeded")


@pytest.mark.parametrize("fields", [{}, {"stream": True}, {"modalities": ["image"]}])
def test_a_client_that_goes_frees_the_engine(loaded_model: LoadedModel, lines: Callable, fields: dict):
    generate = ScriptedGenerate([WORD] * 100_000, step_seconds=0.001)

    async def scenario() -> None:
        with running(loaded_model, generate) as model:
            call = AsgiCall(chunks_of(asking(**fields)))
            async with in_background(call, new_app(model)) as task:
                await until(lambda: generate.num_steps > 3)
                call.gone.set()
                await task
            num_steps = generate.num_steps
            await until(lambda: model.engine.num_running == 0)
            assert generate.num_steps < num_steps + 100

    asyncio.run(scenario())

    assert lines()[0]["outcome"] == "client_gone"


def test_a_client_that_goes_before_its_body_has_come_is_still_answered(
    loaded_model: LoadedModel, lines: Callable
):
    call = AsgiCall(iter([b"{"]))
    call.gone = asyncio.Event()

    async def scenario() -> None:
        app = new_app(loaded_model)
        async with in_background(call, app):
            await until(lambda: call.is_read)

    asyncio.run(scenario())

    assert call.status == 499  # a server around the application may wait for some response
    assert lines()[0]["outcome"] == "client_gone"


def test_a_request_that_waits_to_be_prepared_ends_at_its_deadline(loaded_model: LoadedModel):
    processor = HeldProcessor(loaded_model.processor)
    model = with_processor(loaded_model, processor)

    async def scenario() -> list[int | None]:
        app = new_app(model, Limits(preparing_requests=1, deadline_seconds=0.5))
        first, second = AsgiCall(chunks_of(SHORT)), AsgiCall(chunks_of(SHORT))
        async with in_background(first, app):
            await until(lambda: processor.is_waiting)
            await second(app)
            processor.release()
        return [first.status, second.status]

    assert asyncio.run(scenario()) == [504, 504]


def test_each_request_has_one_line_with_its_id_times_and_tokens_and_no_text(
    loaded_model: LoadedModel, lines: Callable
):
    messages = [{"role": "user", "content": SECRET}]
    with http_client(loaded_model) as http:
        ids = [
            http.post(path, json=body, headers={"X-Request-Id": f"id-{number}"}).headers["x-request-id"]
            for number, (path, body) in enumerate(
                [
                    (CHAT, asking(messages=messages)),
                    (CHAT, asking(messages=messages, stream=True)),
                    (DRAW, {"prompt": SECRET, "n": 2}),
                    (CHAT, asking(messages=messages, stop=SECRET, model=SECRET)),
                ]
            )
        ]
        http.get(f"/v1/models/{SECRET}")

    whole, streamed, drawn, _, model = found = lines()
    assert [line["request_id"] for line in found[:4]] == ids == ["id-0", "id-1", "id-2", "id-3"]
    assert [line["status"] for line in found] == [200, 200, 200, 404, 404]
    assert [line["outcome"] for line in found] == ["answered"] * 3 + ["model_not_found"] * 2
    assert (whole["route"], drawn["route"], model["route"]) == (CHAT, DRAW, "/v1/models/{model_id}")
    for line in (whole, streamed, drawn):
        assert 0 <= line["queue_seconds"] <= line["total_seconds"]
        assert 0 < line["first_token_seconds"] <= line["total_seconds"]
    assert whole["prompt_tokens"] == streamed["prompt_tokens"] > 0
    assert whole["text_tokens"] == streamed["text_tokens"]
    assert (drawn["choices"], drawn["image_tokens"]) == (2, 60)
    assert SECRET not in json.dumps(found)


def test_what_goes_wrong_is_in_the_line(loaded_model: LoadedModel, lines: Callable):
    def fail(requests: object, **callbacks: object) -> list:
        raise RuntimeError("a fault")

    with running(loaded_model, fail) as model, http_client(model) as http:
        http.post(CHAT, json=SHORT)
        http.post(CHAT, json={**SHORT, "stream": True})
        http.post(CHAT, content=b"{", headers={"content-type": "application/json"})
        http.get("/v1/nowhere")
    with http_client(None) as http:
        http.post(CHAT, json=SHORT)

    assert [(line["status"], line["outcome"]) for line in lines()] == [
        (500, "generation_failed"),
        (200, "generation_failed"),
        (400, "invalid_json"),
        (404, "not_found"),
        (503, "model_loading"),
    ]


def test_a_fault_of_the_model_is_logged_with_the_id_of_its_request(
    loaded_model: LoadedModel, caplog: pytest.LogCaptureFixture
):
    def fail(requests: object, **callbacks: object) -> list:
        raise RuntimeError("a fault")

    with running(loaded_model, fail) as model, http_client(model) as http:
        http.post(CHAT, json=SHORT, headers={"X-Request-Id": "id-of-the-fault"})

    assert any("id-of-the-fault" in record.getMessage() and record.exc_info for record in caplog.records)
