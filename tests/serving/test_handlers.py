"""Handlers: the event loop waits for no picture and no tokenizer, and every prompt has room for its reply."""

import asyncio
import threading

import pytest
from starlette.testclient import TestClient

from serving import images
from serving.images import encode_data_url
from serving.loaded_model import LoadedModel
from tests.serving.asgi import AsgiCall, chunks_of, in_background, until
from tests.serving.parts import (
    CHAT,
    DRAW,
    HELLO,
    PICTURE,
    HeldProcessor,
    asking,
    held,
    new_app,
    shown,
    with_processor,
)

CONTEXT, IMAGE_TOKENS = 512, 30


@pytest.mark.parametrize("fields", [{"stream": True}, {}, {"stream": True, "modalities": ["image"]}])
def test_a_reply_goes_on_while_another_request_is_being_prepared(loaded_model: LoadedModel, fields: dict):
    async def scenario() -> None:
        with held(loaded_model) as (generate, model):
            waiting = HeldProcessor(model.processor)
            model = with_processor(model, waiting)
            app = new_app(model)
            first = AsgiCall(chunks_of(asking(**fields)))
            second = AsgiCall(chunks_of(asking(messages=shown(encode_data_url(PICTURE)))))
            waiting.release()
            async with in_background(first, app) as task:
                await until(lambda: generate.batches)
                waiting.hold()
                async with in_background(second, app) as other:
                    await until(lambda: waiting.is_waiting)
                    generate.release()
                    await asyncio.wait_for(asyncio.shield(task), 20)
                    assert not other.done()
                    waiting.release()
                    await until(lambda: second.status)

            assert (first.status, second.status) == (200, 200)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "fields", [{}, {"stream": True}, {"modalities": ["image"]}, {"stream": True, "modalities": ["image"]}]
)
def test_texts_and_pictures_are_never_made_on_the_event_loop(
    loaded_model: LoadedModel, fields: dict, monkeypatch: pytest.MonkeyPatch
):
    processor = HeldProcessor(loaded_model.processor)
    processor.release()
    encode = images.encode_png

    def encode_png(image):
        processor.threads.add(threading.get_ident())
        return encode(image)

    monkeypatch.setattr(images, "encode_png", encode_png)

    async def scenario() -> int | None:
        call = AsgiCall(chunks_of(asking(messages=shown(encode_data_url(PICTURE)), **fields)))
        processor.threads.clear()
        await call(new_app(with_processor(loaded_model, processor)))
        return call.status

    assert asyncio.run(scenario()) == 200
    assert processor.threads
    assert threading.get_ident() not in processor.threads


def words(number: int) -> str:
    return " seven" * number


def longest_prompt(http: TestClient, limit: int) -> int:
    """The number of words with which a prompt has exactly `limit` tokens."""
    empty = http.post(CHAT, json=asking(messages=[{"role": "user", "content": words(1)}]))
    return limit - empty.json()["usage"]["prompt_tokens"] + 1


@pytest.mark.parametrize("route", ["images", "chat", "chat_stream"])
def test_a_prompt_that_leaves_no_room_for_a_picture_is_refused_by_name(http: TestClient, route: str):
    path, prompt_field = (DRAW, "prompt") if route == "images" else (CHAT, "messages")

    def ask(number: int):
        text = f"Draw{words(number)}"
        if route == "images":
            return http.post(path, json={"prompt": text})
        messages = [{"role": "user", "content": text}]
        return http.post(
            path, json=asking(messages=messages, modalities=["image"], stream=route == "chat_stream")
        )

    # "Draw" takes one or more tokens; the border is searched for between what fits and what does not.
    low, high = 0, CONTEXT
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if ask(middle).status_code == 200 else (low, middle)
    refused = ask(high)

    assert low > 100
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == prompt_field
    assert refused.json()["error"]["code"] == "context_length_exceeded"
    assert f"at most {CONTEXT - IMAGE_TOKENS - 2} leave room" in refused.json()["error"]["message"]


def test_a_text_prompt_may_fill_the_context_but_for_one_token(http: TestClient):
    number = longest_prompt(http, CONTEXT - 1)

    fits = http.post(CHAT, json=asking(messages=[{"role": "user", "content": words(number)}]))
    refused = http.post(CHAT, json=asking(messages=[{"role": "user", "content": words(number + 1)}]))

    assert (fits.status_code, fits.json()["usage"]["prompt_tokens"]) == (200, CONTEXT - 1)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "messages")


def test_pictures_alone_and_none_of_them_is_a_contradiction(http: TestClient):
    response = http.post(CHAT, json=asking(modalities=["image"], image={"max_images": 0}))

    assert (response.status_code, response.json()["error"]["param"]) == (400, "image.max_images")


def test_a_reserved_word_does_not_hide_between_two_parts(http: TestClient):
    parts = [{"type": "text", "text": "What is <ima"}, {"type": "text", "text": "ge>?"}]

    response = http.post(CHAT, json=asking(messages=[{"role": "user", "content": parts}]))

    assert (response.status_code, response.json()["error"]["param"]) == (400, "messages[0]")


@pytest.mark.parametrize("value", [1e-320, 1e-38, 5e-4])
def test_a_tiny_temperature_is_greedy_and_a_tiny_top_p_keeps_the_best(http: TestClient, value: float):
    def content(**fields):
        choice = http.post(CHAT, json=asking(max_tokens=20, **fields)).json()["choices"][0]
        return choice["message"]["content"]

    assert content(temperature=value) == content(temperature=0)
    assert content(temperature=1.0, top_p=value) == content(temperature=0)


def test_a_developer_speaks_as_the_system(http: TestClient):
    def content(role):
        messages = [{"role": role, "content": "Be brief."}, *HELLO]
        return http.post(CHAT, json=asking(messages=messages)).json()

    developer, system = content("developer"), content("system")
    assert developer["usage"] == system["usage"]
    assert developer["choices"] == system["choices"]


def test_a_stream_that_could_not_begin_leaves_no_job_behind(loaded_model: LoadedModel):
    async def scenario() -> None:
        with held(loaded_model, send_seconds=0.1) as (generate, model):
            call = AsgiCall(chunks_of(asking(stream=True)), reads=0)
            await asyncio.wait_for(call(new_app(model)), 30)
            generate.release()
            await until(lambda: generate.replies)
            assert generate.replies[0].finish_reason == "cancelled"

    asyncio.run(scenario())
