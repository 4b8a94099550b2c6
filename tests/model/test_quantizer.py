"""Laws of the quantizer: it computes in float32 whatever surrounds it, and with bfloat16 weights too."""

import copy

import pytest
import torch

from model.config import preset
from model.image_tokenizer import ImageTokenizer
from model.quantizer import MultiScaleQuantizer

CONFIG = preset("tiny").image_tokenizer_config
NUM_TOKENS = 30


@pytest.fixture
def quantizer():
    torch.manual_seed(0)
    return MultiScaleQuantizer(CONFIG)


def latents(count=64):
    side = CONFIG.scales[-1]
    return torch.randn(count, CONFIG.latent_dim, side, side, generator=torch.Generator().manual_seed(1))


def outputs(quantizer, latent_BZHW):
    """Everything that the quantizer computes of latents, by name."""
    generator = torch.Generator().manual_seed(2)
    replacements_BL = torch.randint(
        -1, CONFIG.codebook_size, (len(latent_BZHW), NUM_TOKENS), generator=generator
    )
    replacements = list(replacements_BL.split([side * side for side in CONFIG.scales], dim=1))
    codes = quantizer.encode(latent_BZHW)
    corrected = quantizer.encode_with_replacements(latent_BZHW, replacements)
    trained = quantizer(latent_BZHW)
    return {
        "codes": torch.cat(codes, dim=1),
        "canvas": quantizer.canvas(codes),
        "teacher forcing": quantizer.decoder_input(codes),
        "codes with replacements": torch.cat(corrected.codes, dim=1),
        "teacher forcing with replacements": corrected.decoder_input,
        "soft targets": quantizer.soft_targets(corrected.residuals, 0.3),
        "training canvas": trained.canvas,
        "training loss": trained.loss,
    }


def test_autocast_changes_nothing(quantizer):
    expected = outputs(quantizer, latents())

    with torch.autocast("cpu", torch.bfloat16):
        found = outputs(quantizer, latents())

    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_autocast_changes_no_gradient(quantizer):
    def gradients():
        quantizer.zero_grad()
        quantizer(latents()).loss.backward()
        return [parameter.grad.clone() for parameter in quantizer.parameters()]

    expected = gradients()
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients()

    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_weights_in_bfloat16_are_rounded_and_nothing_else_is(quantizer):
    rounded = quantizer.bfloat16()
    expected = outputs(copy.deepcopy(rounded).float(), latents().bfloat16().float())

    found = outputs(rounded, latents().bfloat16())

    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_a_tokenizer_in_bfloat16_draws_what_one_in_float32_draws_up_to_rounding():
    torch.manual_seed(0)
    tokenizer = ImageTokenizer(CONFIG).eval().requires_grad_(False).bfloat16()
    exact = copy.deepcopy(tokenizer).float()
    codes = exact.encode(torch.rand(4, 3, 32, 32) * 2 - 1)

    pixels, training_pixels = tokenizer.decode(codes), tokenizer(torch.zeros(1, 3, 32, 32).bfloat16()).pixels

    assert pixels.dtype == training_pixels.dtype == torch.bfloat16
    torch.testing.assert_close(pixels.float(), exact.decode(codes), atol=0.05, rtol=0)
