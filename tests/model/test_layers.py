"""What the visual decoder's block computes, in every precision."""

import torch

from model.config import preset
from model.layers import FeedForward


def test_the_feed_forward_in_bfloat16_is_that_of_float32_up_to_rounding():
    torch.manual_seed(0)
    forward = FeedForward(preset("tiny").visual_decoder_config).requires_grad_(False)
    x_BLC = torch.randn(8, 30, 128)
    wanted_BLC = forward(x_BLC)
    got_BLC = forward.to(torch.bfloat16)(x_BLC.to(torch.bfloat16)).float()
    assert (got_BLC - wanted_BLC).abs().max() < 0.01 * wanted_BLC.abs().max()
