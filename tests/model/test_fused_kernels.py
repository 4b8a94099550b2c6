"""Laws of liger-kernel's norms: used on a GPU where they are installed, equal, never in the way of a CPU."""

import copy

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from model import fused_kernels
from model.fused_kernels import FusedRMSNorm, fuse_norms


@pytest.fixture
def norm():
    torch.manual_seed(0)
    norm = LlamaRMSNorm(256, eps=1e-5)
    torch.nn.init.normal_(norm.weight, mean=1.0, std=0.1)
    return norm


def output_and_gradients(norm, x, gradient):
    x = x.clone().requires_grad_()
    norm.zero_grad()
    output = norm(x)
    output.backward(gradient)
    return output.detach(), x.grad, norm.weight.grad


def test_without_liger_kernel_norms_stay_what_they_are(monkeypatch, norm):
    monkeypatch.setattr(fused_kernels, "liger_rms_norm", None)

    fuse_norms(torch.nn.Sequential(norm))

    assert type(norm) is LlamaRMSNorm


def test_with_it_norms_keep_their_weights_and_what_they_compute_on_a_cpu(monkeypatch, norm):
    monkeypatch.setattr(fused_kernels, "liger_rms_norm", lambda *_: pytest.fail("called on a CPU"))
    x, weight = torch.randn(3, 256), norm.weight
    expected = norm(x)

    fuse_norms(torch.nn.Sequential(norm))

    assert type(norm) is FusedRMSNorm and norm.weight is weight
    assert torch.equal(norm(x), expected)


@pytest.mark.gpu
def test_fused_norms_are_equal_where_they_are_installed(norm):
    pytest.importorskip("liger_kernel")
    plain, x, gradient = copy.deepcopy(norm).cuda(), torch.randn(30, 256).cuda(), torch.randn(30, 256).cuda()

    fuse_norms(torch.nn.Sequential(norm.cuda()))

    found, expected = output_and_gradients(norm, x, gradient), output_and_gradients(plain, x, gradient)
    for value, other in zip(found, expected, strict=True):
        torch.testing.assert_close(value, other, rtol=1e-5, atol=1e-5)
