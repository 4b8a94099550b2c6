"""Laws of devices: nothing of the model takes for granted where its tensors lie.

Two halves, since no GPU is at hand. A model on the CPU runs while PyTorch's default device is `meta`: a
tensor that somebody makes without saying where is then in the wrong place and ends the test. And what does
not depend on values runs on `meta` as a whole: a literal on the CPU, or a value fetched from the device, ends
the test.
"""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from model.config import preset
from model.generation.cached_language_model import CachedLanguageModel
from model.generation.generate import Request, generate
from model.generation.sampling import GuidanceMode, SamplingParams
from model.image_tokenizer import teacher_forcing
from model.losses import image_loss, text_loss
from model.modeling import VargptForConditionalGeneration
from model.scales import scale_offsets
from model.visual_decoder import DecoderCache

CONFIG = preset("tiny")
CONFIG.null_prompt = [0, 7, 8, 9]
NUM_TOKENS = CONFIG.num_image_tokens
META = torch.device("meta")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return VargptForConditionalGeneration(CONFIG).eval()


@pytest.fixture(scope="module")
def meta_model():
    with META:
        return VargptForConditionalGeneration(CONFIG).eval()


def a_batch():
    """Two samples, one of which is shown a picture, and both draw one."""
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(7, 500, (2, 24), generator=generator)
    drawing = torch.tensor([4, *[6] * NUM_TOKENS, 5]).expand(2, -1)
    input_ids = torch.cat([words, drawing, words[:, :3]], dim=1)
    input_ids[0, 2 : 2 + CONFIG.num_vision_tokens] = CONFIG.image_token_id
    return {
        "input_ids": input_ids,
        "labels": torch.where(input_ids > 6, input_ids, -100),
        "attention_mask": torch.ones_like(input_ids),
        "pixel_values": torch.randn(1, 3, 32, 32, generator=generator),
        "generation_pixel_values": torch.rand(2, 3, 32, 32, generator=generator) * 2 - 1,
        "unconditional": torch.tensor([False, True]),
        "replacements": torch.randint(-1, 256, (2, NUM_TOKENS), generator=generator),
    }


def test_losses_make_no_tensor_without_saying_where(model):
    batch = a_batch()
    expected = model.loss_sums(**batch, softness=0.3)

    with META:
        sums = model.loss_sums(**batch, softness=0.3)
        sums.mean().backward()

    for name, value in vars(sums).items():
        assert value.device.type == "cpu", name
        assert torch.equal(value, vars(expected)[name]), name


def test_a_forward_pass_makes_no_tensor_without_saying_where(model):
    batch = a_batch()
    del batch["replacements"]
    expected = model(**batch)

    with META, torch.no_grad():
        output = model(**batch)

    assert torch.equal(output.loss, expected.loss)


def test_replies_make_no_tensor_without_saying_where(model):
    generator = torch.Generator().manual_seed(0)
    params = SamplingParams(text_temperature=1.0, max_new_tokens=3, max_images=1)
    requests = [
        Request(
            torch.randint(7, 500, (4 + seed,), generator=generator),
            params=replace(params, seed=seed, guidance_mode=mode, smoothing=seed == 1),
            force_image=seed != 2,
        )
        for seed, mode in enumerate([*GuidanceMode, *GuidanceMode])
    ]
    expected = generate(model, requests)

    with META:
        replies = generate(model, requests)

    for reply, other in zip(replies, expected, strict=True):
        assert reply.token_ids == other.token_ids
        assert all(torch.equal(one, two) for one, two in zip(reply.images, other.images, strict=True))


def test_the_image_tokenizer_makes_no_tensor_without_saying_where(model):
    pixels = a_batch()["generation_pixel_values"]
    tokenizer = model.image_tokenizer
    expected = tokenizer(pixels).quantized.loss

    with META:
        loss = tokenizer(pixels).quantized.loss
        pictures = tokenizer.decode(tokenizer.encode(pixels))

    assert torch.equal(loss, expected)
    assert pictures.device.type == "cpu"


@torch.no_grad()
def test_what_an_image_passes_runs_on_any_device(meta_model):
    pixels = torch.empty(2, 3, 32, 32, device=META)
    tokenizer, replacements = (
        meta_model.image_tokenizer,
        torch.empty(2, NUM_TOKENS, dtype=torch.long, device=META),
    )

    features = meta_model.image_features(pixels)
    forced = teacher_forcing(tokenizer, pixels, replacements, softness=0.3)
    plain = teacher_forcing(tokenizer, pixels, None)
    pictures = tokenizer.decode(tokenizer.split(plain.codes))
    trained = tokenizer(pixels)

    for tensor in (features, *forced, *plain[:2], pictures, trained.pixels, trained.quantized.loss):
        assert tensor.device == META
    assert forced.decoder_input.shape == plain.decoder_input.shape == (2, NUM_TOKENS - 1, 16)


@torch.no_grad()
def test_what_a_drawing_passes_runs_on_any_device(meta_model):
    codes = torch.empty(2, NUM_TOKENS, dtype=torch.long, device=META)
    unconditional = torch.empty(2, dtype=torch.bool, device=META)
    decoder, offsets = meta_model.visual_decoder, scale_offsets(CONFIG.scales)

    decoder_input = meta_model.image_tokenizer.decoder_input(codes)
    tokens, cond = meta_model.embed_images(decoder_input, unconditional)
    hidden = meta_model.generation_input_projector(tokens)  # as wide as the language model's states
    logits = meta_model.image_logits(hidden, cond)
    cache = DecoderCache(CONFIG.visual_decoder_config.depth)
    parts = [decoder.predict(tokens[:, a:b], cond, cache) for a, b in pairwise(offsets)]
    sums, counts = image_loss(logits, codes, CONFIG.scales)
    soft_sums, _ = image_loss(logits, logits.softmax(-1), CONFIG.scales)

    assert torch.cat(parts, dim=1).shape == logits.shape == (2, NUM_TOKENS, 256)
    for tensor in (logits, sums, counts, soft_sums):
        assert tensor.device == META


@torch.no_grad()
def test_what_words_pass_runs_on_any_device(meta_model):
    targets = torch.empty(5, dtype=torch.long, device=META)
    steps = CachedLanguageModel(meta_model.language_model)
    steps.reserve(2, 6)
    embedded = torch.empty(2, 3, CONFIG.hidden_size, device=META)

    level = steps.step(embedded, [0, 1], [0, 0])
    ragged = steps.step(embedded, [1, 0], [3, 2])
    total, count = text_loss(meta_model.text_logits(torch.empty(5, CONFIG.hidden_size, device=META)), targets)

    for tensor in (level, ragged, total, count):
        assert tensor.device == META
