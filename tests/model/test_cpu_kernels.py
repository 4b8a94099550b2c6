"""Laws of kernels for processors without bfloat16: the same products, more exact."""

import pytest
import torch
from torch import nn

from model.cpu_kernels import WideningLinear, widen_linear_maps


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("shape", [(64,), (3, 40), (2,)])
def test_a_widening_map_is_the_product_in_float32_rounded_once(monkeypatch, shape, has_bias):
    # Pieces of a few rows of weights each, the last one smaller.
    monkeypatch.setattr("model.cpu_kernels._WIDENED_WEIGHTS", 5 * 48)
    torch.manual_seed(0)
    linear = nn.Linear(48, 33, bias=has_bias).to(torch.bfloat16)
    x = torch.randn(*shape, 48).to(torch.bfloat16)
    expected = nn.functional.linear(
        x.float(), linear.weight.float(), linear.bias.float() if has_bias else None
    )
    weight = linear.weight

    widen_linear_maps(nn.Sequential(linear))
    with torch.no_grad():
        found = linear(x)

    assert isinstance(linear, WideningLinear)
    assert linear.weight is weight and weight.dtype is torch.bfloat16
    assert found.dtype is torch.bfloat16 and found.shape == expected.shape
    if x[..., 0].numel() >= 64:
        assert torch.equal(found, expected.to(torch.bfloat16))
    else:
        torch.testing.assert_close(found.float(), expected, atol=0.05, rtol=0.02)


def test_maps_in_float32_stay_what_they_are():
    linear = nn.Linear(4, 4)

    widen_linear_maps(nn.Sequential(linear))

    assert type(linear) is nn.Linear
