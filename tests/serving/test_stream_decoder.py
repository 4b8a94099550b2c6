"""A stream's pieces always join to the whole reply."""

import pytest
import torch
from PIL import Image

from model.generation.generate import Event, Reply
from model.text_tokenizer import IMAGE_END, IMAGE_START
from serving.loaded_model import LoadedModel
from serving.replies import ChatShape, Piece
from serving.stream_decoder import StreamDecoder

REPLIES = [
    "Here is a red seven on a white background.<image>The picture shows a red seven.",
    "<image>",
    "<image><image>Two.",
    " One.  <image> Two. <image> Three. ",
    "Gr\u00fc\u00dfe \u4f60\u597d \U0001f468\u200d\U0001f469\u200d\U0001f467 .<image>\U0001f600",
    "no picture at all",
    "",
]


def played(backend: LoadedModel, script: str) -> tuple[list[Event], Reply]:
    """The events and the reply of a model that would say this."""
    tokenizer = backend.processor.tokenizer
    start, end = tokenizer.convert_tokens_to_ids([IMAGE_START, IMAGE_END])
    events, images = [], []
    for number, text in enumerate(script.split("<image>")):
        if number:
            images.append(torch.rand(3, 32, 32))
            events += [Event(0, "token", start), Event(0, "scale", scale=0)]
            events += [Event(0, "image", image=images[-1]), Event(0, "token", end)]
        events += [Event(0, "token", token) for token in tokenizer.encode(text, add_special_tokens=False)]
    token_ids = [event.token_id for event in events if event.type == "token"]
    return events, Reply(token_ids, images, "stop", 5, 30 * len(images))


def joined(pieces: list[Piece]) -> list[str | bytes]:
    """Neighbouring texts made one, pictures as bytes."""
    found: list[str | bytes] = []
    for piece in pieces:
        if isinstance(piece, Image.Image):
            found.append(piece.tobytes())
        elif found and isinstance(found[-1], str):
            found[-1] += piece
        else:
            found.append(piece)
    return found


@pytest.mark.parametrize("script", REPLIES)
def test_parts_join_to_the_segments_of_the_reply(backend: LoadedModel, script: str):
    events, reply = played(backend, script)
    stream_decoder = StreamDecoder(backend.processor, in_parts=True)

    pieces = [piece for event in events for piece in stream_decoder.on_event(event)] + stream_decoder.close()

    assert joined(pieces) == joined(backend.processor.pieces(reply.token_ids, reply.images))


@pytest.mark.parametrize("script", REPLIES)
def test_deltas_join_to_the_content_of_the_message(backend: LoadedModel, script: str):
    events, reply = played(backend, script)
    stream_decoder = StreamDecoder(backend.processor)
    shape = ChatShape(model="vargpt", seed=0)
    pieces = backend.processor.pieces(reply.token_ids, reply.images)

    heard = [piece for event in events for piece in stream_decoder.on_event(event)] + stream_decoder.close()

    message = shape.completion([pieces], [reply])["choices"][0]["message"]
    assert "".join(piece for piece in heard if isinstance(piece, str)) == message["content"]
    assert len([piece for piece in heard if isinstance(piece, Image.Image)]) == len(message.get("images", []))


def test_no_delta_holds_half_a_character(backend: LoadedModel):
    events, _ = played(backend, REPLIES[4])
    stream_decoder = StreamDecoder(backend.processor)

    texts = [piece for event in events for piece in stream_decoder.on_event(event) if isinstance(piece, str)]

    assert texts
    assert not any("\ufffd" in text for text in texts)
