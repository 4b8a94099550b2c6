"""Request bodies as real clients of OpenAI send them: what is taken, what is refused, and by which name."""

from typing import Any

import pytest

from serving.config import Limits
from serving.errors import ApiError
from serving.request_body import parse_body
from serving.schemas import ChatRequest, ImagesRequest
from tests.serving.parts import HELLO, json_bytes

HUGE = [10**400, -(10**400), 1e308, -1e308]
TAKEN = {
    "stop": ["\n", ["a", "b", "c", "d"], [], None],
    "frequency_penalty": [0, 0.0, None],
    "presence_penalty": [0, None],
    "logprobs": [False, None],
    "top_logprobs": [None, 0],
    "logit_bias": [{}, {"50256": 0}, None],
    "response_format": [{"type": "text"}, None],
    "tools": [[], None],
    "tool_choice": ["none", "auto", None],
    "parallel_tool_calls": [True, False, None],
    "functions": [[], None],
    "function_call": ["none", None],
    "store": [True, False, None],
    "metadata": [{}, {"team": "a"}, None],
    "service_tier": ["auto", "default", None],
    "reasoning_effort": ["none", "minimal", "low", "medium", "high", "xhigh", None],
    "verbosity": ["medium", None],
    "prediction": [None],
    "audio": [None],
    "web_search_options": [None],
    "user": ["me", None],
    "safety_identifier": ["abc"],
    "prompt_cache_key": ["abc"],
    "model": [None],
    "stream": [None, False],
    "stream_options": [None],
    "n": [None],
    "seed": [None],
    "temperature": [None, 0, 2],
    "top_p": [None, 1],
    "max_tokens": [None],
    "max_completion_tokens": [None],
    "modalities": [None],
    "image": [None, {"temperature": None}],
}
REFUSED = {
    "stop": ["", ["a"] * 5, ["a", ""], "x" * 1000, 7],
    "frequency_penalty": [0.5, -1],
    "presence_penalty": [1],
    "logprobs": [True],
    "top_logprobs": [3],
    "logit_bias": [{"50256": -100}],
    "response_format": [{"type": "json_object"}, {"type": "json_schema", "json_schema": {}}],
    "tools": [[{"type": "function", "function": {"name": "f"}}]],
    "tool_choice": ["required", {"type": "function"}],
    "functions": [[{"name": "f"}]],
    "function_call": [{"name": "f"}],
    "service_tier": ["flex"],
    "reasoning_effort": ["utmost"],
    "verbosity": ["high"],
    "prediction": [{"type": "content"}],
    "audio": [{"voice": "a"}],
    "web_search_options": [{}],
    "strange": [None, 1],
}
MESSAGES_TAKEN = [
    {"role": "developer", "content": "Be brief."},
    {"role": "user", "content": "x", "name": "somebody"},
    {"role": "assistant", "content": "x", "refusal": None, "annotations": [], "audio": None},
    {"role": "assistant", "content": "x", "tool_calls": None, "function_call": None},
    {
        "role": "assistant",
        "content": None,
        "images": [{"type": "image_url", "image_url": {"url": "data:"}}],
    },
]
NUMBERS = ["temperature", "top_p", "top_k", "seed", "n", "max_tokens", "max_completion_tokens"]
IMAGE_NUMBERS = [
    *("temperature", "top_k", "top_p", "fine_top_p", "guidance", "fine_guidance", "cooling", "max_images"),
]


def parse(schema: type = ChatRequest, **fields: Any) -> Any:
    body = {"messages": HELLO, **fields} if schema is ChatRequest else {"prompt": "a seven", **fields}
    return parse_body(json_bytes(body), "application/json", schema, Limits())


def refusal(schema: type = ChatRequest, **fields: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse(schema, **fields)
    return caught.value


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in TAKEN for value in TAKEN[name]])
def test_what_changes_nothing_is_taken(name: str, value: Any):
    assert parse(**{name: value}).messages


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in REFUSED for value in REFUSED[name]])
def test_what_would_change_the_meaning_is_refused_by_name(name: str, value: Any):
    error = refusal(**{name: value})

    assert error.status == 400
    assert error.param.partition("[")[0] == name
    assert name in error.message


def test_null_is_the_same_as_absent():
    nulls = {name: None for name in ChatRequest.model_fields if name != "messages"}

    assert parse(**nulls) == parse()


@pytest.mark.parametrize("message", MESSAGES_TAKEN)
def test_messages_of_real_clients_are_taken(message: dict):
    assert parse(messages=[message]).messages[0].role == message["role"]


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "user", "content": None}, "messages[0]"),
        ({"role": "assistant", "content": None}, "messages[0]"),
        ({"role": "tool", "content": "x", "tool_call_id": "1"}, "messages[0].role"),
        ({"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}, "messages[0].tool_calls"),
        ({"role": "assistant", "content": "x", "refusal": "No."}, "messages[0].refusal"),
    ],
)
def test_messages_that_say_something_else_are_refused_by_name(message: dict, param: str):
    assert refusal(messages=[message]).param == param


@pytest.mark.parametrize("value", HUGE)
@pytest.mark.parametrize("name", NUMBERS)
def test_absurd_numbers_are_refused_by_name_and_shown_short(name: str, value: float):
    error = refusal(**{name: value})

    assert (error.status, error.param) == (400, name)
    assert len(error.message) < 300


@pytest.mark.parametrize("value", HUGE)
@pytest.mark.parametrize("name", IMAGE_NUMBERS)
def test_absurd_numbers_of_pictures_are_refused_by_name(name: str, value: float):
    assert refusal(image={name: value}).param == f"image.{name}"
    assert refusal(ImagesRequest, image={name: value}).param in (f"image.{name}", "image")


def test_a_long_name_of_a_field_is_not_sent_back_whole():
    error = refusal(**{"x" * 100_000: 1})

    assert error.code == "unknown_field"
    assert len(error.message) < 300
    assert len(error.param) < 300


@pytest.mark.parametrize(
    "fields",
    [
        *({"quality": "auto"}, {"quality": "standard"}, {"style": None}, {"user": "me"}),
        *({"moderation": "low"}, {"background": "auto"}, {"partial_images": 0}, {"n": None}),
        *({"size": None}, {"output_compression": 100}),
    ],
)
def test_fields_of_image_clients_that_change_nothing_are_taken(fields: dict):
    assert parse(ImagesRequest, **fields).prompt


@pytest.mark.parametrize(
    "fields",
    [{"quality": "hd"}, {"style": "vivid"}, {"background": "transparent"}, {"output_format": "webp"}],
)
def test_fields_of_image_clients_that_would_change_something_are_refused(fields: dict):
    assert refusal(ImagesRequest, **fields).param == next(iter(fields))
