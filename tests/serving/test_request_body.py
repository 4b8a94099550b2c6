"""Bodies cost little, whatever is in them: bounded work, a budget of bytes, nothing kept."""

import asyncio
import gc
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator

import pytest
from PIL import Image
from pydantic import ValidationError

from serving.config import Limits
from serving.errors import ApiError
from serving.images import encode_data_url
from serving.loaded_model import LoadedModel
from serving.request_body import parse_body
from serving.schemas import ChatRequest
from tests.serving.asgi import AsgiCall, chunks_of, in_background, until
from tests.serving.parts import SHORT, held, json_bytes, new_app, shown

MANY = 5_500_000
BODIES = {
    "messages": b'{"messages":[%s]}',
    "parts": b'{"messages":[{"role":"user","content":[%s]}]}',
    "images": b'{"messages":[{"role":"assistant","content":"","images":[%s]}]}',
}
# Processor seconds and peak memory of a process that checks a body of 16 MB.
MEASURE = """
import resource, sys, time
from serving.config import Limits
from serving.errors import ApiError
from serving.request_body import parse_body
from serving.schemas import ChatRequest
body = bytearray(sys.argv[1].encode() % b",".join([b"{}"] * int(sys.argv[2])))
before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
try:
    parse_body(body, "application/json", ChatRequest, Limits())
except ApiError as error:
    seconds = time.process_time() - started
    print(error.status, seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.parametrize("place", BODIES)
def test_millions_of_values_are_refused_in_little_time_and_memory(place: str):
    command = [sys.executable, "-c", MEASURE, BODIES[place].decode(), str(MANY)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    status, seconds, mebibytes = done.stdout.split()

    assert status == "400"
    assert float(seconds) < 2
    assert float(mebibytes) < 50


@pytest.mark.parametrize("place", BODIES)
def test_a_list_is_left_at_its_first_error(place: str):
    with pytest.raises(ValidationError) as caught:
        ChatRequest.model_validate_json(BODIES[place] % b",".join([b'{"type":"image_url"}'] * 1000))

    assert caught.value.error_count() < 5


@pytest.mark.parametrize("place", BODIES)
def test_a_list_that_is_too_long_is_named(place: str):
    item = b'{"role":"user","content":"x"}' if place == "messages" else b'{"type":"text","text":"x"}'
    if place == "images":
        item = b'{"type":"image_url","image_url":{"url":"data:"}}'
    body = bytearray(BODIES[place] % b",".join([item] * 1025))

    with pytest.raises(ApiError) as caught:
        parse_body(body, "application/json", ChatRequest, Limits())

    assert caught.value.param.endswith(
        {"messages": "messages", "parts": "content", "images": "images"}[place]
    )


def test_a_text_of_commas_within_its_limit_is_taken():
    body = json_bytes({"messages": [{"role": "user", "content": "[{," * 10_000}]})

    assert parse_body(body, "application/json", ChatRequest, Limits()).messages


@pytest.mark.parametrize(
    "content_type", ["application/json", "application/json; charset=utf-8", "application/a+json"]
)
def test_json_is_taken_under_its_names(content_type: str):
    assert parse_body(json_bytes(SHORT), content_type, ChatRequest, Limits()).seed == 5


@pytest.mark.parametrize(
    "content_type", ["", "text/plain", "multipart/form-data; boundary=x", "application/xml"]
)
def test_nothing_else_is_taken_for_json(content_type: str):
    with pytest.raises(ApiError, match="application/json"):
        parse_body(json_bytes(SHORT), content_type, ChatRequest, Limits())


def stalled(number: int) -> Iterator[bytes]:
    """The beginning of a body whose rest does not come."""
    yield b" " * number


def test_bodies_share_a_budget_of_bytes_that_is_given_back(loaded_model: LoadedModel):
    async def scenario() -> None:
        app = new_app(loaded_model, Limits(bodies_bytes=1000))
        first = AsgiCall(stalled(700))
        async with in_background(first, app) as task:
            await until(lambda: first.is_read)
            second, third = (
                AsgiCall(stalled(700)),
                AsgiCall(stalled(0), headers=[(b"content-length", b"700")]),
            )
            await second(app)
            await third(app)
            assert [second.status, third.status] == [429, 429]
            assert second.body["error"]["code"] == third.body["error"]["code"] == "too_many_bytes"
            assert second.header("retry-after") == "1"
            first.gone.set()
            await task
        last = AsgiCall(chunks_of({**SHORT, "user": "x" * 700}))
        await last(app)
        assert last.status == 200

    asyncio.run(scenario())


def test_nothing_of_a_body_is_kept_while_its_reply_is_generated(loaded_model: LoadedModel):
    url = encode_data_url(Image.effect_noise((1500, 1500), 100).convert("RGB"))
    size = len(url)

    def chunks() -> Iterator[bytes]:
        body = json_bytes({**SHORT, "messages": shown(url)})
        for start in range(0, len(body), 65_536):
            yield bytes(body[start : start + 65_536])
        del body
        yield b""

    async def scenario() -> int:
        with held(loaded_model) as (generate, model):
            app = new_app(model)
            call = AsgiCall(chunks())
            tracemalloc.start()
            async with in_background(call, app):
                await until(lambda: generate.batches)
                gc.collect()
                kept = tracemalloc.get_traced_memory()[0]
                generate.release()
                await until(lambda: call.status)
            tracemalloc.stop()
            assert call.status == 200
            return kept

    kept = asyncio.run(scenario())

    assert size > 2_000_000
    assert kept < size / 4
