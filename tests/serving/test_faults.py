"""The HTTP API when something is wrong: a status, a shape and a reason for every fault."""

import json
import threading
import time
from collections.abc import Callable

import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

from model.generation.generate import Event, Reply
from serving.config import Limits
from serving.device_errors import is_fatal
from serving.images import encode_data_url
from serving.loaded_model import LoadedModel, ServedModel
from tests.serving.parts import (
    CHAT,
    DRAW,
    HELLO,
    SHORT,
    WORD,
    asking,
    events_of,
    held,
    http_client,
    running,
    shown,
)

BAD = [
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "user"}]}, "messages[0]"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "messages[0].content[0]"),
    ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content"),
    ({"messages": shown("https://example.org/a.png")}, "messages[0].content[0].image_url.url"),
    ({"messages": shown("data:image/png;base64,AAAA")}, "messages[0].content[0].image_url.url"),
    ({"messages": shown(*["data:image/png;base64,AAAA"] * 9)}, "messages"),
    ({"messages": HELLO * 65}, "messages"),
    ({"messages": [{"role": "user", "content": "x" * 40_000}]}, "messages"),
    ({"messages": [{"role": "user", "content": "seven " * 5_000}]}, "messages"),
    ({"messages": [{"role": "user", "content": "seven " * 600}]}, "messages"),
    ({"messages": [{"role": "user", "content": "What is <image>?"}]}, "messages[0]"),
    ({"messages": [{"role": "system", "content": shown("data:,")[0]["content"]}]}, "messages[0].content[0]"),
    ({"temprature": 1}, "temprature"),
    ({"temperature": -1}, "temperature"),
    ({"temperature": "1"}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"n": 0}, "n"),
    ({"n": 9}, "n"),
    ({"seed": -1}, "seed"),
    ({"seed": 2**63}, "seed"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 5000}, "max_tokens"),
    ({"max_completion_tokens": 5}, "max_completion_tokens"),
    ({"modalities": ["audio"]}, "modalities[0]"),
    ({"modalities": []}, "modalities"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"response_content": "xml"}, "response_content"),
    ({"image": {"guidance_mode": "none at all"}}, "image.guidance_mode"),
    ({"image": {"top_k": -1}}, "image.top_k"),
    ({"image": {"temperature": -0.5}}, "image.temperature"),
    ({"image": {"max_images": 100}}, "image.max_images"),
    ({"image": {"cfg": 1}}, "image.cfg"),
]


@pytest.mark.parametrize(("fields", "param"), BAD, ids=[f"{param}-{i}" for i, (_, param) in enumerate(BAD)])
def test_a_bad_request_is_told_which_field_is_wrong(http: TestClient, fields: dict, param: str):
    response = http.post(CHAT, json=asking(**fields))

    error = response.json()["error"]
    assert (response.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert error["message"]
    assert error["code"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"size": "1024x1024"}, "size"),
        ({"response_format": "url"}, "response_format"),
        ({"stream": True}, "stream"),
        ({"partial_images": 2}, "partial_images"),
        ({"n": 99}, "n"),
        ({"image": {"max_images": 2}}, "image"),
        ({"prompt": "x" * 40_000}, "prompt"),
    ],
)
def test_a_bad_drawing_request_is_told_which_field_is_wrong(http: TestClient, fields: dict, param: str):
    response = http.post(DRAW, json={"prompt": "a seven", **fields})

    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"messages": NaN}', b"[" * 100_000]
)
def test_a_body_that_is_no_json_object_is_a_bad_request(http: TestClient, content: bytes):
    response = http.post(CHAT, content=content, headers={"content-type": "application/json"})

    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_a_page_elsewhere_cannot_post_a_form_to_a_local_service(http: TestClient):
    response = http.post(CHAT, content=json.dumps(SHORT), headers={"content-type": "text/plain"})

    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_json")


def test_what_does_not_exist_is_not_found_in_the_same_shape(http: TestClient):
    model = http.post(CHAT, json=asking(model="gpt-9"))
    route = http.get("/v1/completions")
    method = http.get(CHAT)

    assert (model.status_code, model.json()["error"]["code"]) == (404, "model_not_found")
    assert (route.status_code, route.json()["error"]["code"]) == (404, "not_found")
    assert (method.status_code, method.headers["allow"]) == (405, "POST")


def test_a_body_over_the_limit_is_refused_declared_or_not(loaded_model: LoadedModel):
    with http_client(loaded_model, Limits(body_bytes=1000)) as http:
        declared = http.post(CHAT, content=b"x" * 1001)
        undeclared = http.post(CHAT, content=(b"x" * 100 for _ in range(11)))

    assert declared.status_code == undeclared.status_code == 413
    assert declared.json()["error"]["code"] == "body_too_large"


def test_a_picture_over_the_limit_is_too_large(http: TestClient):
    url = encode_data_url(Image.new("RGB", (5000, 5000)))

    response = http.post(CHAT, json=asking(messages=shown(url)))

    assert (response.status_code, response.json()["error"]["code"]) == (413, "image_too_large")


def test_a_model_that_is_not_there_yet_is_503_with_a_time_to_come_back():
    with http_client(None) as http:
        responses = [http.post(CHAT, json=SHORT), http.get("/v1/models")]

    assert [response.status_code for response in responses] == [503, 503]
    assert all(int(response.headers["retry-after"]) >= 1 for response in responses)


def test_a_full_queue_is_429_with_a_time_to_come_back(loaded_model: LoadedModel, wait_until: Callable):
    with held(loaded_model, queue_length=1) as (generate, model), http_client(model) as http:
        threads = [threading.Thread(target=http.post, args=(CHAT,), kwargs={"json": SHORT}) for _ in range(2)]
        threads[0].start()
        wait_until(lambda: generate.batches)
        threads[1].start()
        wait_until(lambda: model.engine.num_waiting == 1)

        responses = [http.post(path, json=body) for path, body in ((CHAT, SHORT), (DRAW, {"prompt": "x"}))]

        generate.release()
        for thread in threads:
            thread.join()
    assert [response.status_code for response in responses] == [429, 429]
    assert all(int(response.headers["retry-after"]) >= 1 for response in responses)
    assert responses[0].json()["error"]["type"] == "rate_limit_error"


def test_a_deadline_is_504_and_in_a_stream_an_event(loaded_model: LoadedModel):
    with held(loaded_model, deadline_seconds=0.3) as (_, model), http_client(model) as http:
        whole = http.post(CHAT, json=SHORT)
        events = events_of(http, SHORT)

    assert (whole.status_code, whole.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert events[-1]["error"]["code"] == "deadline_exceeded"


def test_a_stream_that_has_nothing_to_say_keeps_the_line_open(loaded_model: LoadedModel):
    with (
        held(loaded_model, deadline_seconds=0.5, heartbeat_seconds=0.1) as (_, model),
        http_client(model) as http,
    ):
        texts = [
            http.post(CHAT, json=asking(stream=True, **extra)).text
            for extra in ({}, {"modalities": ["image"]})
        ]

    assert all(text.count(": still working") >= 2 for text in texts)


def test_work_that_shows_no_text_yet_keeps_the_line_open_too(loaded_model: LoadedModel):
    def draw(requests: list, on_event: Callable, should_stop: Callable) -> list[Reply]:
        for _ in range(20):
            time.sleep(0.05)
            on_event(Event(0, "scale", scale=0))
        return [Reply([WORD], [], "stop", 5, 0)]

    with running(loaded_model, draw, heartbeat_seconds=0.2) as model, http_client(model) as http:
        text = http.post(CHAT, json=asking(stream=True)).text

    assert text.count(": still working") >= 2


def test_more_open_requests_than_allowed_are_429(loaded_model: LoadedModel, wait_until: Callable):
    limits = Limits(open_requests=1)
    with held(loaded_model) as (generate, model), http_client(model, limits) as http:
        waiting = threading.Thread(target=http.post, args=(CHAT,), kwargs={"json": SHORT})
        waiting.start()
        wait_until(lambda: generate.batches)

        response = http.post(CHAT, json=SHORT)

        generate.release()
        waiting.join()
    assert (response.status_code, response.headers["retry-after"]) == (429, "1")


def test_a_fault_of_the_model_is_500_and_tells_no_secrets(loaded_model: LoadedModel):
    def fail(requests: object, **callbacks: object) -> list:
        raise RuntimeError("a path, a shape, a secret")

    with running(loaded_model, fail) as model, http_client(model) as http:
        response = http.post(CHAT, json=SHORT)

        assert (response.status_code, response.json()["error"]["code"]) == (500, "generation_failed")
        assert "secret" not in response.text
        assert model.engine.is_alive


def test_a_fatal_fault_of_the_device_is_told_to_clients_and_probes(
    loaded_model: LoadedModel, wait_until: Callable
):
    def fail(requests: object, **callbacks: object) -> list:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    served_model = ServedModel()
    with running(loaded_model, fail, is_fatal) as model, http_client(model) as http:
        served_model.loaded = model
        assert (served_model.is_alive, served_model.is_ready) == (True, True)

        first = http.post(CHAT, json=SHORT)
        wait_until(lambda: not served_model.is_alive)
        second = http.post(CHAT, json=SHORT)

    assert (first.status_code, first.json()["error"]["code"]) == (500, "generation_failed")
    assert (second.status_code, second.json()["error"]["code"]) == (503, "model_broken")
    assert not served_model.is_ready


def test_a_slot_is_alive_while_its_model_loads_and_dead_when_that_failed():
    served_model = ServedModel()
    assert (served_model.is_alive, served_model.is_ready) == (True, False)

    served_model.failure = "damaged"

    assert (served_model.is_alive, served_model.is_ready) == (False, False)


def test_an_error_of_our_own_in_the_model_is_no_mistake_of_the_user(loaded_model: LoadedModel):
    def fail(requests: object, **callbacks: object) -> list:
        raise ValueError("a bug")

    with running(loaded_model, fail) as model, http_client(model) as http:
        assert http.post(CHAT, json=SHORT).status_code == 500


def test_a_service_that_shuts_down_takes_no_more(loaded_model: LoadedModel):
    with held(loaded_model) as (generate, model), http_client(model) as http:
        generate.release()
        model.engine.drain(10)

        response = http.post(CHAT, json=SHORT)

    assert (response.status_code, response.json()["error"]["code"]) == (503, "shutting_down")
