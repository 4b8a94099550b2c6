"""The HTTP http over the real model: OpenAI's shapes, and a clear answer to every fault."""

import base64
import io
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from serving.images import encode_data_url
from serving.loaded_model import LoadedModel
from tests.serving.parts import CHAT, DRAW, HELLO, PICTURE, SHORT, asking, events_of, shown


def pixels(url: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,"))))


def test_a_reply_has_the_shape_that_openai_clients_read(http: TestClient):
    response = http.post(CHAT, json=asking(model="vargpt"))

    body = response.json()
    [choice] = body["choices"]
    used = body["usage"]
    assert (response.status_code, body["object"], body["model"]) == (200, "chat.completion", "vargpt")
    assert choice["message"]["role"] == "assistant"
    assert isinstance(choice["message"]["content"], str)
    assert choice["finish_reason"] in ("stop", "length")
    assert used["total_tokens"] == used["prompt_tokens"] + used["completion_tokens"]


def test_every_answer_says_which_request_and_which_model(http: TestClient):
    given = http.post(CHAT, json=SHORT, headers={"X-Request-Id": "abc-1"})
    strange = http.get("/v1/nowhere", headers={"X-Request-Id": "a b\tc"})

    assert given.headers["x-request-id"] == "abc-1"
    assert len(strange.headers["x-request-id"]) == 32
    assert given.headers["x-model-version"] == strange.headers["x-model-version"] == "7"


def test_a_picture_that_was_asked_for_comes_beside_the_text(http: TestClient, loaded_model: LoadedModel):
    message = http.post(CHAT, json=asking(modalities=["image"])).json()["choices"][0]["message"]

    [part] = message["images"]
    assert message["content"] == ""
    assert part["type"] == "image_url"
    assert pixels(part["image_url"]["url"]).size == (loaded_model.info.image_size,) * 2


def test_parts_keep_the_order_of_text_and_pictures(http: TestClient):
    body = asking(modalities=["image"], response_content="parts")

    [part] = http.post(CHAT, json=body).json()["choices"][0]["message"]["content"]

    assert part["type"] == "image_url"


def test_a_stream_joins_to_the_reply_that_is_not_streamed(http: TestClient):
    body = asking(max_tokens=24, temperature=1.0)
    whole = http.post(CHAT, json=body).json()

    events = events_of(http, {**body, "stream_options": {"include_usage": True}})

    deltas = [event["choices"][0]["delta"] for event in events[:-1]]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta.get("content", "") for delta in deltas) == whole["choices"][0]["message"]["content"]
    assert deltas[-1] == {}
    assert events[-2]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert (events[-1]["choices"], events[-1]["usage"]) == ([], whole["usage"])
    assert all(event["usage"] is None for event in events[:-1])
    assert len({event["id"] for event in events}) == 1


def test_choices_of_a_stream_are_told_apart(http: TestClient):
    body = asking(n=3, temperature=1.0, max_tokens=12)
    whole = http.post(CHAT, json=body).json()

    chunks = [event["choices"][0] for event in events_of(http, body)]

    for index, choice in enumerate(whole["choices"]):
        deltas = [chunk["delta"] for chunk in chunks if chunk["index"] == index]
        assert "".join(delta.get("content", "") for delta in deltas) == choice["message"]["content"]
    assert len({choice["message"]["content"] for choice in whole["choices"]}) == 3


@pytest.mark.parametrize("shape", ["string", "parts"])
def test_a_streamed_picture_is_the_picture_that_is_not_streamed(http: TestClient, shape: str):
    body = asking(modalities=["image"], response_content=shape)
    message = http.post(CHAT, json=body).json()["choices"][0]["message"]

    events = events_of(http, body)

    [event] = [event for event in events if event["modality"] == "image"]
    delta = event["choices"][0]["delta"]
    assert delta.get("images", delta.get("content")) == message.get("images", message["content"])
    assert "usage" not in event


def test_the_same_seed_gives_the_same_picture_and_each_choice_its_own(http: TestClient):
    def urls(**fields: Any) -> list[str]:
        choices = http.post(CHAT, json=asking(modalities=["image"], **fields)).json()["choices"]
        return [choice["message"]["images"][0]["image_url"]["url"] for choice in choices]

    both = urls(n=2, seed=11)

    assert both == [*urls(seed=11), *urls(seed=12)]
    assert both[0] != both[1]


def test_without_a_seed_one_is_drawn_and_told(http: TestClient):
    first, second = (http.post(DRAW, json={"prompt": "a seven"}).json() for _ in range(2))

    again = http.post(DRAW, json={"prompt": "a seven", "seed": first["seed"]}).json()

    assert first["seed"] != second["seed"]
    assert again["data"] == first["data"]


def test_pictures_are_drawn_by_the_images_route(http: TestClient, loaded_model: LoadedModel):
    side = loaded_model.info.image_size
    body = http.post(DRAW, json={"prompt": "a red seven on white", "n": 3, "size": f"{side}x{side}"}).json()

    images = [Image.open(io.BytesIO(base64.b64decode(entry["b64_json"]))) for entry in body["data"]]
    assert [image.size for image in images] == [(side, side)] * 3
    assert body["size"] == f"{side}x{side}"
    assert body["usage"]["total_tokens"] == body["usage"]["input_tokens"] + body["usage"]["output_tokens"]


def test_shown_pictures_are_read(http: TestClient):
    url = encode_data_url(PICTURE)

    one = http.post(CHAT, json=asking(messages=shown(url)))
    two = http.post(CHAT, json=asking(messages=shown(url, url, text="Compare them.")))

    assert (one.status_code, two.status_code) == (200, 200)
    assert one.json()["usage"]["prompt_tokens"] < two.json()["usage"]["prompt_tokens"]


def test_a_reply_can_be_sent_back_as_it_came(http: TestClient):
    message = http.post(CHAT, json=asking(modalities=["image"])).json()["choices"][0]["message"]

    response = http.post(CHAT, json=asking(messages=[*HELLO, message, *shown(encode_data_url(PICTURE))]))

    assert response.status_code == 200


def test_the_model_tells_its_version_its_lineage_and_what_it_can_do(http: TestClient):
    [model] = http.get("/v1/models").json()["data"]

    assert (model["id"], model["version"], model["lineage"]["data_md5"]) == ("vargpt", "7", "0123.dir")
    assert model["output_modalities"] == ["text", "image"]
    assert len(model["lineage"]["weights_sha256"]) == 64
    assert http.get("/v1/models/vargpt").json() == model
