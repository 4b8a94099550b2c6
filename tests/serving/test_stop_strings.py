"""Stop strings: a reply ends before them, whole or streamed, however tokens cut them."""

import pytest
from PIL import Image
from starlette.testclient import TestClient

from serving.loaded_model import LoadedModel
from serving.replies import ChatReplyFormat
from serving.stop_strings import find_stop, settled_length
from serving.stream_decoder import StreamDecoder
from tests.serving.parts import CHAT, ScriptedGenerate, asking, events_of, http_client, played, running

TEXT = "Here is a red seven on a white background. Seven."
# What comes before the stop string: one in a word, one over several words, one that never comes, one at once.
STOPS = [
    ("seven on", "Here is a red "),
    (["white", "red"], "Here is a "),
    (" background. S", "Here is a red seven on a white"),
    ("never", TEXT),
    ("Here", ""),
    (["Sevens", "Seven.!"], TEXT),
    (".", "Here is a red seven on a white background"),
]


def test_the_model_takes_no_step_after_the_stop_string(loaded_model: LoadedModel):
    generate = ScriptedGenerate(loaded_model.processor.tokenizer.encode(TEXT * 50, add_special_tokens=False))
    with running(loaded_model, generate) as model, http_client(model) as http:
        spent = http.post(CHAT, json=asking(stop="seven on")).json()["usage"]

    assert generate.num_steps == spent["completion_tokens"] < 30


@pytest.mark.parametrize(("stop", "expected"), STOPS)
@pytest.mark.parametrize("stream", [False, True])
def test_a_reply_ends_before_its_stop_string(
    loaded_model: LoadedModel, stop: str | list[str], expected: str, stream: bool
):
    token_ids = loaded_model.processor.tokenizer.encode(TEXT, add_special_tokens=False)
    generate = ScriptedGenerate(token_ids)
    with running(loaded_model, generate) as model, http_client(model) as http:
        content, reason = answered(http, asking(stop=stop), stream=stream)

    assert (content, reason) == (expected, "stop")


def test_only_the_choice_with_the_stop_string_ends(loaded_model: LoadedModel):
    with http_client(loaded_model) as http:
        body = asking(n=2, temperature=1.0, max_tokens=40, image={"max_images": 0}, seed=3)
        first, second = (
            choice["message"]["content"] for choice in http.post(CHAT, json=body).json()["choices"]
        )
        stop = next(first[i : i + 4] for i in range(1, len(first)) if first[i : i + 4] not in second)

        choices = http.post(CHAT, json={**body, "stop": stop}).json()["choices"]

    assert choices[0]["message"]["content"] == first[: first.index(stop)]
    assert choices[1]["message"]["content"] == second


@pytest.mark.parametrize(
    "script", ["One. Two.<image>Three. Four. Five.", "One.<image><image>Two. Four. Six", "Four."]
)
@pytest.mark.parametrize("in_parts", [False, True])
def test_a_stop_string_after_a_picture_ends_a_stream_where_it_ends_the_whole(
    loaded_model: LoadedModel, script: str, in_parts: bool
):
    events, reply = played(loaded_model, script)
    stops = ("Fo", "Six and")
    decoder = StreamDecoder(loaded_model.processor, in_parts=in_parts, stops=stops)
    reply_format = ChatReplyFormat(model="vargpt", seed=0, in_parts=False)

    parts = [part for event in events for part in decoder.on_event(event)] + decoder.close()

    whole = loaded_model.processor.parts(reply.token_ids, reply.images, stops)
    message = reply_format.completion([whole], [reply])["choices"][0]["message"]
    separator = "" if in_parts else " "
    texts = [part for part in whole if isinstance(part, str)]
    assert "".join(part for part in parts if isinstance(part, str)) == separator.join(filter(None, texts))
    assert len([part for part in parts if isinstance(part, Image.Image)]) == len(message.get("images", []))
    assert "Fo" not in message["content"]


@pytest.mark.parametrize(
    ("text", "stops", "place"),
    [
        ("abc", ["c"], 2),
        ("abc", ["x"], None),
        ("abcabc", ["bc", "ab"], 0),
        ("", ["a"], None),
        ("abc", [], None),
    ],
)
def test_the_first_stop_string_is_found(text: str, stops: list[str], place: int | None):
    assert find_stop(text, stops) == place


@pytest.mark.parametrize(
    ("text", "stops", "length"),
    [
        *(("abc", ["cd"], 2), ("abc", ["bcd", "cx"], 1), ("abc", ["x"], 3), ("abc", ["abcd"], 0)),
        *(("abc", [], 3), ("aab", ["ab!"], 1), ("", ["a"], 0)),
    ],
)
def test_what_may_begin_a_stop_string_is_not_settled(text: str, stops: list[str], length: int):
    assert settled_length(text, stops) == length


def answered(http: TestClient, body: dict, *, stream: bool) -> tuple[str, str]:
    """Text and finish reason of the only choice."""
    if not stream:
        [choice] = http.post(CHAT, json=body).json()["choices"]
        return choice["message"]["content"], choice["finish_reason"]
    choices = [event["choices"][0] for event in events_of(http, body)]
    return "".join(choice["delta"].get("content", "") for choice in choices), choices[-1]["finish_reason"]
