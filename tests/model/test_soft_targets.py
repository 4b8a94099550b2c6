"""Laws of soft targets: the nearest code leads, equally near ones share, far ones have nothing."""

import pytest
import torch

from model.config import preset
from model.image_tokenizer import ImageTokenizer, teacher_forcing
from model.losses import image_loss
from model.quantizer import MultiScaleQuantizer

CONFIG = preset("tiny").image_tokenizer_config
NO_REPLACEMENTS = torch.full((4, 30), -1)


@pytest.fixture
def quantizer():
    torch.manual_seed(0)
    return MultiScaleQuantizer(CONFIG).requires_grad_(False)


def residuals(seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(4, side * side, CONFIG.latent_dim, generator=generator) for side in CONFIG.scales]


def test_shares_add_up_to_one_and_the_nearest_code_has_the_most(quantizer):
    shares = quantizer.soft_targets(residuals(), 0.3)

    assert shares.shape == (4, 30, CONFIG.codebook_size)
    torch.testing.assert_close(shares.sum(-1), torch.ones(4, 30))
    nearest = torch.cat([quantizer.nearest(c.flatten(0, 1)).view(4, -1) for c in residuals()], dim=1)
    assert torch.equal(shares.argmax(-1), nearest)


@pytest.mark.parametrize("between", [0.5, 0.0])
def test_softness_zero_leaves_all_to_the_nearest_even_where_a_code_is_met_exactly(quantizer, between):
    start, end = quantizer.codebook.weight[:2]
    points = torch.lerp(start, end, 0.4 * between).expand(1, 1, -1)

    assert quantizer.soft_targets([points], 0.0)[0, 0, 0] == pytest.approx(1)


def test_codes_equally_near_share_equally_and_far_ones_have_next_to_nothing(quantizer):
    quantizer.codebook.weight.mul_(10)
    quantizer.codebook.weight[1] = quantizer.codebook.weight[0] + 1e-3
    point = quantizer.codebook.weight[:2].mean(0).expand(1, 1, -1) + 0.5

    shares = quantizer.soft_targets([point], 0.05)[0, 0]

    assert shares[0] == pytest.approx(0.5, abs=0.01)
    assert shares[2:].sum() < 1e-3


def test_more_softness_spreads_further(quantizer):
    sharp, soft = (quantizer.soft_targets(residuals(), softness).amax(-1).mean() for softness in (0.05, 0.5))

    assert soft < 0.8 * sharp


def test_the_loss_of_the_nearest_alone_is_the_loss_of_codes():
    torch.manual_seed(0)
    tokenizer = ImageTokenizer(CONFIG).eval().requires_grad_(False)
    pictures = torch.rand(4, 3, 32, 32) * 2 - 1
    logits = torch.randn(4, 30, CONFIG.codebook_size)

    hard = teacher_forcing(tokenizer, pictures, NO_REPLACEMENTS)
    soft = teacher_forcing(tokenizer, pictures, NO_REPLACEMENTS, softness=1e-9)

    assert hard.soft_targets is None
    expected, counts = image_loss(logits, hard.codes, CONFIG.scales)
    sums, soft_counts = image_loss(logits, soft.soft_targets, CONFIG.scales)
    torch.testing.assert_close(sums, expected, rtol=1e-3, atol=1e-3)
    assert torch.equal(counts, soft_counts)


def test_soft_targets_leave_codes_and_canvases_as_they_are():
    torch.manual_seed(0)
    tokenizer = ImageTokenizer(CONFIG).eval().requires_grad_(False)
    pictures = torch.rand(4, 3, 32, 32) * 2 - 1

    hard, soft = (teacher_forcing(tokenizer, pictures, NO_REPLACEMENTS, softness) for softness in (0.0, 0.5))

    assert torch.equal(hard.codes, soft.codes)
    assert torch.equal(hard.decoder_input, soft.decoder_input)
