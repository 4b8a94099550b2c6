"""Laws of batches: packed samples learn what they learn alone, and dummies change nothing but what runs."""

import pytest
import torch
from PIL import Image

from model.batches import packed, padded
from model.config import preset
from model.errors import UserError
from model.losses import IGNORED, token_counts
from model.modeling import VargptForConditionalGeneration
from model.processing import VargptProcessor
from model.text_tokenizer import build_text_tokenizer
from model.vargpt import TargetImages

CONFIG = preset("tiny")
COLORS = ("red", "green", "blue", "white")
CONVERSATIONS = {
    "text": [("Hi", "Ho ho ho")],
    "question": [("<image>\nWhich digit?", "Seven."), ("Which color?", "Red, it is red.")],
    "drawing": [("Draw a red seven.", "Here it is. <image_gen> Done.")],
    "interleaved": [
        ("<image>\nDraw it anew.", "One <image_gen> two <image_gen>"),
        ("And <image> this?", "No."),
    ],
}
MIXES = [
    ["text", "question", "drawing", "interleaved"],
    ["drawing", "interleaved", "question"],
    ["interleaved", "text", "interleaved"],
    ["text", "text"],
    ["question"],
    ["unconditional", "text", "drawing", "unconditional"],
]


@pytest.fixture(scope="module")
def processor():
    words = [text for turns in CONVERSATIONS.values() for turn in turns for text in turn]
    return VargptProcessor.for_config(
        CONFIG, build_text_tokenizer(words * 3, CONFIG), system_prompt="", crop_margin=1.0
    )


@pytest.fixture(scope="module")
def model(processor):
    torch.manual_seed(0)
    model = VargptForConditionalGeneration(CONFIG)
    model.visual_decoder.initialize()
    # Else gates of 1e-5 hide what flows through its blocks.
    for block in model.visual_decoder.blocks:
        torch.nn.init.normal_(block.modulation.weight, std=0.05)
    return model.requires_grad_(True)


def picture(number):
    image = Image.new("RGB", (32, 32), COLORS[number % 4])
    image.putpixel((number % 32, 5), (9, 99, 9))
    return image


def encoded(processor, kinds, as_codes=None):
    """One sample of each kind; their drawings as codes of this model, if given."""

    def drawn(number):
        if as_codes is None:
            return picture(number)
        with torch.no_grad():
            return torch.cat(as_codes.image_tokenizer.encode(processor.drawn([picture(number)])), dim=1)[0]

    samples = []
    for index, kind in enumerate(kinds):
        if kind == "unconditional":
            samples.append(processor.encode_unconditional(drawn(index)))
            continue
        messages = [
            {"role": role, "content": text}
            for turn in CONVERSATIONS[kind]
            for role, text in zip(("user", "assistant"), turn, strict=True)
        ]
        _, _, placeholders = processor.encode_text(messages)
        images = [
            drawn(index + number) if placeholder == "<image_gen>" else picture(index + number)
            for number, placeholder in enumerate(placeholders)
        ]
        samples.append(processor.encode(messages, images))
    return samples


def learned(model, batches, **arguments):
    """Loss sums of batches together, and the gradient of every weight."""
    model.zero_grad()
    sums = [model.loss_sums(**batch, **arguments) for batch in batches]
    text = sum(part.text for part in sums)
    image = sum(part.image_by_scale for part in sums)
    (text + 0.3 * image.sum()).backward()
    gradients = {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    return text.detach(), image.detach(), gradients


def assert_same(found, expected, atol=1e-5):
    for value, other in zip(found[:2], expected[:2], strict=True):
        torch.testing.assert_close(value, other, rtol=1e-5, atol=1e-5)
    zero = torch.zeros(())
    for name in found[2].keys() | expected[2].keys():
        value, other = found[2].get(name, zero), expected[2].get(name, zero)
        scale = float(other.abs().max().clamp(min=1))
        torch.testing.assert_close(
            *torch.broadcast_tensors(value, other), rtol=0, atol=atol * scale, msg=name
        )


@pytest.mark.parametrize("kinds", MIXES, ids="+".join)
@pytest.mark.parametrize("attention", ["sdpa", "eager", "sdpa_by_sample"])
def test_a_packed_row_learns_what_its_samples_learn_alone(processor, model, kinds, attention):
    samples = encoded(processor, kinds)
    model.language_model.set_attn_implementation(attention)
    try:
        together = learned(model, [packed(samples)])
        alone = learned(model, [padded([sample], 2) for sample in samples])
    finally:
        model.language_model.set_attn_implementation("sdpa")

    assert_same(together, alone)


def test_several_rows_learn_what_one_padded_batch_learns(processor, model):
    samples = encoded(processor, MIXES[0] + MIXES[1])

    rows = learned(model, [packed(samples[:3]), packed(samples[3:5]), packed(samples[5:])])

    assert_same(rows, learned(model, [padded(samples, 2)]))


def test_positions_start_anew_and_no_label_crosses_a_boundary(processor):
    samples = encoded(processor, ["question", "text"])
    long_labels = samples[1].input_ids.clone()

    row = packed([samples[0], samples[1].__class__(**{**vars(samples[1]), "labels": long_labels})])

    first = len(samples[0].input_ids)
    assert row["position_ids"][0].tolist() == [*range(first), *range(len(long_labels))]
    assert "attention_mask" not in row
    assert row["labels"][0, first] == IGNORED and row["labels"][0, first + 1] == long_labels[1]


def test_a_changed_sample_changes_nothing_of_its_neighbours_in_a_row(processor, model):
    samples, others = (encoded(processor, ["interleaved", kind, "question"]) for kind in ("drawing", "text"))
    last = len(samples[2].input_ids)

    with torch.no_grad():
        one, other = (
            model.predict(row["input_ids"], None, row["pixel_values"], targets, row["position_ids"]).hidden
            for row, targets in ((packed(s), targets_of(packed(s))) for s in (samples, others))
        )

    torch.testing.assert_close(one[:, -last:], other[:, -last:], rtol=0, atol=1e-5)


def targets_of(batch):
    return TargetImages(pixels=batch["generation_pixel_values"], unconditional=batch["unconditional"])


def test_codes_in_place_of_pixels_learn_the_same(processor, model):
    kinds = ["drawing", "interleaved", "text", "unconditional"]
    from_codes = packed(encoded(processor, kinds, as_codes=model))

    assert "generation_pixel_values" not in from_codes and from_codes["codes"].shape == (4, 30)
    assert_same(learned(model, [from_codes]), learned(model, [packed(encoded(processor, kinds))]), atol=1e-7)
    assert torch.equal(
        *(token_counts(batch, CONFIG.scales) for batch in (from_codes, packed(encoded(processor, kinds))))
    )


def test_without_its_encoder_a_tokenizer_takes_codes_only_and_gets_it_back(processor, model):
    batch = packed(encoded(processor, ["drawing"]))
    names = list(model.state_dict())
    expected = model.loss_sums(**batch).image_by_scale

    taken = model.image_tokenizer.detach_encoder()
    try:
        assert not any(name.startswith("image_tokenizer.encoder.") for name in model.state_dict())
        with_codes = packed(encoded_with(processor, torch.zeros(30, dtype=torch.long)))
        assert model.loss_sums(**with_codes).image_by_scale.isfinite().all()
        with pytest.raises(UserError, match="no encoder now: give codes"):
            model.loss_sums(**batch)
    finally:
        model.image_tokenizer.attach_encoder(taken)

    assert list(model.state_dict()) == names
    assert torch.equal(model.loss_sums(**batch).image_by_scale, expected)


def encoded_with(processor, codes):
    messages = [{"role": "user", "content": "Draw"}, {"role": "assistant", "content": "<image_gen>"}]
    return [processor.encode(messages, [codes])]


LEARNING = (
    "understanding_projector",
    "language_model",
    "generation_input_projector",
    "generation_output_projector",
    "visual_decoder",
)


def as_row(samples):
    return packed(samples)


def as_padded(samples):
    return padded(samples, 2)


@pytest.mark.parametrize("collate", [as_row, as_padded])
def test_forcing_all_modules_changes_nothing_to_the_bit_where_all_run_anyway(processor, model, collate):
    batch = collate(encoded(processor, MIXES[0]))

    forced = learned(model, [batch], force_all_modules=True)

    free = learned(model, [batch])
    assert torch.equal(forced[0], free[0]) and torch.equal(forced[1], free[1])
    assert forced[2].keys() == free[2].keys()
    assert all(torch.equal(gradient, free[2][name]) for name, gradient in forced[2].items())


@pytest.mark.parametrize(
    "kinds", [["text"], ["question", "text"], ["drawing"], ["drawing", "text"]], ids="+".join
)
@pytest.mark.parametrize("as_codes", [False, True])
@pytest.mark.parametrize("collate", [as_row, as_padded])
def test_forcing_all_modules_changes_no_value_and_gives_every_weight_a_gradient(
    processor, model, kinds, as_codes, collate
):
    batch = collate(encoded(processor, kinds, as_codes=model if as_codes else None))

    forced = learned(model, [batch], force_all_modules=True)

    free = learned(model, [batch])
    assert torch.equal(forced[0], free[0]) and torch.equal(forced[1], free[1])
    learns = {name for name, _ in model.named_parameters() if name.startswith(LEARNING)}
    assert learns <= forced[2].keys()
    for name, gradient in forced[2].items():
        assert torch.equal(gradient, free[2].get(name, torch.zeros_like(gradient))), name


def test_modules_run_in_one_order_whatever_the_batch_has(processor, model):
    def calls(kinds):
        called = []
        hooks = [
            module.register_forward_hook(lambda *_, name=name: called.append(name))
            for name, module in model.named_modules()
            if not name.startswith("image_tokenizer") and next(module.parameters(False), None) is not None
        ]
        learned(model, [as_padded(encoded(processor, kinds))], force_all_modules=True)
        for hook in hooks:
            hook.remove()
        return called

    everything = calls(["interleaved"])
    assert {"vision_tower", "visual_decoder"} <= {name.split(".")[0] for name in everything}
    for kinds in (["text"], ["question"], ["drawing"]):
        assert calls(kinds) == everything


def test_an_empty_micro_batch_has_no_loss_and_zero_gradients(processor, model):
    batch = packed([processor.empty_sample()])

    nats, image, gradients = learned(model, [batch], force_all_modules=True)

    assert float(nats) == 0.0 and image.tolist() == [0.0] * 4
    assert token_counts(batch, CONFIG.scales).tolist() == [0.0] * 5
    assert {"language_model.lm_head.weight", "visual_decoder.start_embedding.weight"} <= gradients.keys()
    assert not any(gradient.any() for gradient in gradients.values())


def test_counts_are_those_of_the_losses(processor, model):
    for kinds in MIXES:
        batch = packed(encoded(processor, kinds))
        sums = model.loss_sums(**batch)

        counts = token_counts(batch, CONFIG.scales)

        assert counts.tolist() == [float(sums.num_text), *map(float, sums.num_image_by_scale)]
