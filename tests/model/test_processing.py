"""Laws of the processor and of what is saved: one template, labels for answers only, nothing lost on disk."""

import pytest
import torch
from PIL import Image
from transformers import AutoModelForMultimodalLM, AutoProcessor

from model.checkpoint import load_model, save_model, verify
from model.config import preset
from model.errors import UserError
from model.generation.generate import Reply
from model.losses import IGNORED
from model.modeling import VargptForConditionalGeneration
from model.processing import VargptProcessor
from model.text_tokenizer import build_text_tokenizer
from model.transforms import drawn_pixels, picture

RED = Image.new("RGB", (32, 32), "red")
DRAWING = [
    {"role": "user", "content": "<image>\nDraw a red seven."},
    {"role": "assistant", "content": "Here it is. <image_gen> Done."},
]
QUESTIONS = [
    {"role": "user", "content": "<image>\nWhich digit?"},
    {"role": "assistant", "content": "Seven."},
    {"role": "user", "content": "Which color?"},
    {"role": "assistant", "content": "Red."},
]


@pytest.fixture(scope="module")
def processor():
    config = preset("tiny")
    tokenizer = build_text_tokenizer(["USER: Draw a red seven. ASSISTANT: Here it is. Done."] * 3, config)
    return VargptProcessor.for_config(config, tokenizer, system_prompt="", crop_margin=1.0)


@pytest.fixture(scope="module")
def model(processor):
    torch.manual_seed(0)
    config = preset("tiny")
    config.null_prompt = processor.null_prompt()
    return VargptForConditionalGeneration(config).eval()


def test_a_prompt_is_the_beginning_of_the_conversation_it_was_trained_on(processor):
    encoded = processor.encode(DRAWING, [RED, RED])
    parts = [{"type": "image", "image": RED}, {"type": "text", "text": "Draw a red seven."}]

    prompt = processor.request([{"role": "user", "content": parts}]).input_ids

    assert prompt.tolist() == encoded.input_ids[: len(prompt)].tolist()
    assert (encoded.labels[: len(prompt)] == IGNORED).all()


def test_labels_ask_for_answers_and_nothing_else(processor):
    encoded = processor.encode(QUESTIONS, [RED])

    asked = encoded.input_ids[encoded.labels != IGNORED]

    assert processor.tokenizer.decode(asked) == " Seven.</s> Red.</s>"


def test_labels_leave_out_the_positions_of_a_drawing(processor):
    encoded = processor.encode(DRAWING, [RED, RED])
    asked = processor.tokenizer.decode(encoded.input_ids[encoded.labels != IGNORED])

    assert asked == " Here it is.<|image_gen_start|><|image_gen_end|> Done.</s>"


def test_padding_changes_no_loss(processor, model):
    one, other = processor.encode(DRAWING, [RED, RED]), processor.encode(QUESTIONS, [RED])

    mixed = model.loss_sums(**processor.collate([one, other]))
    apart = [model.loss_sums(**processor.collate([sample])) for sample in (one, other)]

    torch.testing.assert_close(mixed.text, apart[0].text + apart[1].text)
    torch.testing.assert_close(mixed.image_by_scale, apart[0].image_by_scale + apart[1].image_by_scale)
    assert mixed.num_text == apart[0].num_text + apart[1].num_text


def test_a_batch_may_hold_any_kind_of_sample(processor, model):
    text_only = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    answer = "<image_gen> and <image_gen>"
    two = [{"role": "user", "content": "Two"}, {"role": "assistant", "content": answer}]
    samples = [
        processor.encode(text_only, []),
        processor.encode(two, [RED, RED]),
        processor.encode(QUESTIONS, [RED]),
        processor.encode(DRAWING, [RED, RED]),
        processor.encode_unconditional(RED),
    ]

    sums = model.loss_sums(**processor.collate(samples))

    assert sums.num_image_by_scale.tolist() == [4, 16, 36, 64]
    assert sums.mean().isfinite()


def test_a_saved_model_comes_back_bit_for_bit_and_unpickled(processor, model, tmp_path):
    save_model(model, processor, tmp_path)
    loaded, its_processor = load_model(tmp_path)

    verify(tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    assert loaded.config.null_prompt == its_processor.null_prompt() == processor.null_prompt()
    assert its_processor.render(DRAWING) == processor.render(DRAWING)
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".bin", ".pt", ".pkl")]
    assert (tmp_path / "chat_template.jinja").is_file()


def test_auto_classes_find_model_and_processor(processor, model, tmp_path):
    save_model(model, processor, tmp_path)

    assert isinstance(AutoModelForMultimodalLM.from_pretrained(tmp_path), VargptForConditionalGeneration)
    assert isinstance(AutoProcessor.from_pretrained(tmp_path), VargptProcessor)


def test_large_models_are_saved_in_shards(model, processor, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size="8MB")

    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert (tmp_path / "model.safetensors.index.json").is_file()


def test_a_reply_comes_apart_in_its_order(processor):
    tokenizer = processor.tokenizer
    start, end = tokenizer.convert_tokens_to_ids(["<|image_gen_start|>", "<|image_gen_end|>"])
    words = tokenizer.encode(" Here it is.", add_special_tokens=False)
    pictures = [torch.zeros(3, 4, 4), torch.ones(3, 4, 4)]
    reply = Reply([*words, start, end, *words, start, end], pictures, "stop", 1, 60)

    segments = processor.segments(reply)

    assert [kind for kind, _ in segments] == ["text", "image", "text", "image"]
    assert segments[3][1].getpixel((0, 0)) == (255, 255, 255)
    assert processor.text(reply) == "Here it is. Here it is."


def test_pixels_and_pictures_are_inverse():
    image = Image.effect_noise((32, 32), 60).convert("RGB")

    back = picture((drawn_pixels(image, 32, 1.0) + 1) / 2)

    assert back.tobytes() == image.tobytes()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "text is missing"),
        ({"text": []}, "text is missing"),
        ({"text": "Hi", "return_tensors": "np"}, "return_tensors must be 'pt', got 'np'"),
        ({"text": "<image>", "images": ["red.png"]}, "images must be pictures of Pillow, got str"),
        ({"text": "<image>"}, "images: 0 given for 1 placeholders"),
    ],
)
def test_a_call_that_cannot_be_met_is_refused(processor, arguments, said):
    with pytest.raises(UserError, match=said):
        processor(**arguments)


def test_a_crop_larger_than_the_picture_is_refused(processor):
    with pytest.raises(UserError, match=r"crop_margin must be at least 1, got 0\.5"):
        VargptProcessor.for_config(preset("tiny"), processor.tokenizer, crop_margin=0.5)


def test_images_must_match_their_placeholders(processor, model):
    with pytest.raises(ValueError, match="images: 1 given for 2 placeholders"):
        processor.encode(DRAWING, [RED])
    with pytest.raises(ValueError, match="17 image positions, but pixel_values are missing"):
        model(processor.encode(QUESTIONS, [RED]).input_ids[None])
