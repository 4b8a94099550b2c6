"""Laws of conversations: what cannot be answered is refused by name; turns are rendered as in training."""

import pytest
from PIL import Image

from model.config import preset
from model.errors import UserError
from model.processing import VargptProcessor
from model.text_tokenizer import build_text_tokenizer

RED = Image.new("RGB", (32, 32), "red")


@pytest.fixture(scope="module")
def processor():
    config = preset("tiny")
    tokenizer = build_text_tokenizer(["USER: Draw a red seven. ASSISTANT: Here it is. Be kind."] * 3, config)
    return VargptProcessor.for_config(config, tokenizer, system_prompt="", crop_margin=1.0)


def user(content):
    return {"role": "user", "content": content}


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "messages are empty"),
        (["Hi"], r"messages\[0\] must be a dictionary, got str"),
        ([{"role": "robot", "content": "Hi"}], r"messages\[0\].role .* 'robot'"),
        ([{"content": "Hi"}], r"messages\[0\].role .* None"),
        ([user(5)], r"messages\[0\].content must be a text or a list, got int"),
        ([user("Hi"), {"role": "assistant"}, user("Ho")], r"messages\[1\].content must be .* got NoneType"),
        ([user(["Hi"])], r"messages\[0\]: unknown modality 'Hi'"),
        ([user([{"type": "sound", "sound": 1}])], "unknown modality 'sound'"),
        ([user([{"type": ["text"], "text": 1}])], r"unknown modality \['text'\]"),
        ([user([{"type": "text"}])], r"messages\[0\]: text must be a string, got NoneType"),
        ([user([{"type": "text", "text": 5}])], "text must be a string, got int"),
        ([user([{"type": "image", "image": "x"}])], "image must be a picture, got str"),
        ([user([{"type": "image_gen"}])], "image_gen must be a picture, got NoneType"),
        ([user("see <|image_gen_pad|>")], "reserved word '<|image_gen_pad|>'".replace("|", r"\|")),
        ([user("see <s>")], "reserved word '<s>'"),
        ([user("broken \ud800")], r"messages\[0\]: text is not valid Unicode"),
        ([user("Hi"), {"role": "assistant", "content": "Ho"}], "end with a user's turn"),
        ([{"role": "system", "content": "Hi"}], "end with a user's turn"),
    ],
)
def test_a_conversation_that_cannot_be_answered_is_refused_by_name(processor, messages, said):
    with pytest.raises(UserError, match=said):
        processor.request(messages)


def test_a_conversation_to_learn_from_needs_turns_with_known_roles(processor):
    with pytest.raises(UserError, match="messages are empty"):
        processor.encode([], [])
    with pytest.raises(UserError, match=r"messages\[1\].role .* 'robot'"):
        processor.encode([user("Hi"), {"role": "robot", "content": "Ho"}], [])


def test_a_text_and_a_list_with_this_text_are_rendered_alike(processor):
    def conversation(wrap):
        turns = [("system", "Be kind."), ("user", "Draw."), ("assistant", "Here it is."), ("user", "Again.")]
        return [{"role": role, "content": wrap(text)} for role, text in turns]

    as_text = processor.render(conversation(lambda text: text))

    assert as_text == "<s>Be kind. USER: Draw. ASSISTANT: Here it is.</s>USER: Again. ASSISTANT:"
    assert processor.render(conversation(lambda text: [{"type": "text", "text": text}])) == as_text


def test_images_of_all_turns_are_found_in_order(processor):
    blue = Image.new("RGB", (32, 32), "blue")
    messages = [
        user([{"type": "image", "image": RED}, {"type": "text", "text": "Draw this."}]),
        {"role": "assistant", "content": [{"type": "image_gen", "image": RED}]},
        user([{"type": "image", "image": blue}]),
    ]

    request = processor.request(messages)

    assert (len(request.pixel_values), len(request.generation_pixel_values)) == (2, 1)
    assert request.pixel_values[0, 0].mean() > 0 > request.pixel_values[1, 0].mean()
