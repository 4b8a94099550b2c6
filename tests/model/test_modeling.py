"""Laws of the forward pass: arguments that contradict each other are refused, and nothing is left out
silently.
"""

import pytest
import torch

from model.config import preset
from model.errors import UserError
from model.modeling import VargptForConditionalGeneration

CONFIG = preset("tiny")
NUM_TOKENS = CONFIG.num_image_tokens
PIXELS = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
DRAWING = torch.tensor([[7, 8, 4, *[6] * NUM_TOKENS, 5]])
CODES = torch.zeros(1, NUM_TOKENS, dtype=torch.long)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return VargptForConditionalGeneration(CONFIG).eval().requires_grad_(False)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"codes": CODES, "generation_pixel_values": PIXELS}, "codes or generation_pixel_values, not both"),
        ({"codes": CODES, "replacements": CODES}, "replacements and softness go with"),
        ({"codes": CODES, "softness": 0.5}, "replacements and softness go with"),
        ({"codes": CODES[:, 1:]}, r"codes must be \(B, 30\), got \(1, 29\)"),
        ({"generation_pixel_values": PIXELS[..., 1:]}, r"images must be \(3, 32, 32\), got \(3, 32, 31\)"),
        (
            {"generation_pixel_values": PIXELS[..., 1:], "replacements": CODES},
            r"images must be \(3, 32, 32\), got \(3, 32, 31\)",
        ),
        ({"labels": DRAWING[:, 1:], "codes": CODES}, r"labels are \(1, 33\), but input_ids \(1, 34\)"),
        ({"pixel_values": PIXELS[..., 1:]}, r"pixel_values must be \(images, 3, 32, 32\)"),
        ({"pixel_values": PIXELS}, "pixel_values fill 17 positions, but input_ids have 0"),
        ({}, "30 image positions, but generation_pixel_values are missing"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(model, arguments, said):
    with pytest.raises(UserError, match=said):
        model.loss_sums(**{"input_ids": DRAWING, "labels": DRAWING, **arguments})


def test_soft_targets_need_no_replacements(model):
    none = torch.full((1, NUM_TOKENS), -1)

    hard, soft, expected = (
        model.loss_sums(DRAWING, DRAWING, generation_pixel_values=PIXELS, **arguments).image_by_scale
        for arguments in ({}, {"softness": 0.5}, {"softness": 0.5, "replacements": none})
    )

    assert torch.equal(soft, expected)
    assert not torch.allclose(soft, hard)


def test_losses_of_text_and_image_add_up_to_the_loss(model):
    output = model(DRAWING, generation_pixel_values=PIXELS, labels=DRAWING)
    sums = model.loss_sums(DRAWING, DRAWING, generation_pixel_values=PIXELS)

    assert torch.equal(output.loss, output.text_loss + output.image_loss)
    torch.testing.assert_close(output.loss, sums.mean())
    torch.testing.assert_close(sums.mean(text_weight=0.0, image_weight=2.0), 2 * output.image_loss)
