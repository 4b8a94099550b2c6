"""Incremental decoding: a stream's parts always join to the whole reply."""

import pytest
from PIL import Image

from serving.loaded_model import LoadedModel
from serving.replies import ChatReplyFormat, ReplyPart
from serving.stream_decoder import StreamDecoder
from tests.serving.parts import played

REPLIES = [
    "Here is a red seven on a white background.<image>The picture shows a red seven.",
    "<image>",
    "<image><image>Two.",
    " One.  <image> Two. <image> Three. ",
    "Gr\u00fc\u00dfe \u4f60\u597d \U0001f468\u200d\U0001f469\u200d\U0001f467 .<image>\U0001f600",
    "no picture at all",
    "",
]


def joined(parts: list[ReplyPart]) -> list[str | bytes]:
    """Neighbouring texts made one, pictures as bytes."""
    found: list[str | bytes] = []
    for part in parts:
        if isinstance(part, Image.Image):
            found.append(part.tobytes())
        elif found and isinstance(found[-1], str):
            found[-1] += part
        else:
            found.append(part)
    return found


@pytest.mark.parametrize("script", REPLIES)
def test_parts_join_to_the_segments_of_the_reply(loaded_model: LoadedModel, script: str):
    events, reply = played(loaded_model, script)
    stream_decoder = StreamDecoder(loaded_model.processor, in_parts=True)

    parts = [part for event in events for part in stream_decoder.on_event(event)] + stream_decoder.close()

    assert joined(parts) == joined(loaded_model.processor.parts(reply.token_ids, reply.images))


@pytest.mark.parametrize("script", REPLIES)
def test_deltas_join_to_the_content_of_the_message(loaded_model: LoadedModel, script: str):
    events, reply = played(loaded_model, script)
    stream_decoder = StreamDecoder(loaded_model.processor)
    reply_format = ChatReplyFormat(model="vargpt", seed=0)
    parts = loaded_model.processor.parts(reply.token_ids, reply.images)

    heard = [part for event in events for part in stream_decoder.on_event(event)] + stream_decoder.close()

    message = reply_format.completion([parts], [reply])["choices"][0]["message"]
    assert "".join(part for part in heard if isinstance(part, str)) == message["content"]
    assert len([part for part in heard if isinstance(part, Image.Image)]) == len(message.get("images", []))


def test_no_delta_holds_half_a_character(loaded_model: LoadedModel):
    events, _ = played(loaded_model, REPLIES[4])
    stream_decoder = StreamDecoder(loaded_model.processor)

    texts = [part for event in events for part in stream_decoder.on_event(event) if isinstance(part, str)]

    assert texts
    assert not any("\ufffd" in text for text in texts)
