"""The transformer block of the visual decoder: adaptive layer norm, cosine attention, feed-forward.

Source: `AdaLNSelfAttn` of VAR's released code (models/basic_var.py), arXiv:2404.02905.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import cpu_kernels
from model.attention import attend
from model.config import VisualDecoderConfig

# Shape legend: B = batch, L = tokens fed now, K = tokens attended to, the cached ones included, C = width,
# N = heads, H = channels of a head, F = width of the feed-forward.

NORM_EPS = 1e-6
MAX_ATTENTION_SCALE = 100.0
INITIAL_ATTENTION_SCALE = 4.0

KeysValues = tuple[Tensor, Tensor]


class Modulation(NamedTuple):
    """Gates, scales and shifts of one block's adaptive layer norms, each (B, 1, C), in the released order."""

    gate_attention: Tensor
    gate_forward: Tensor
    scale_attention: Tensor
    scale_forward: Tensor
    shift_attention: Tensor
    shift_forward: Tensor


def modulate(x_BLC: Tensor, scale_B1C: Tensor, shift_B1C: Tensor) -> Tensor:
    """Adaptive layer norm: no weights of its own, then scale and shift, which depend on the condition."""
    normed_BLC = F.layer_norm(x_BLC, x_BLC.shape[-1:], eps=NORM_EPS)
    return torch.addcmul(shift_B1C, normed_BLC, 1 + scale_B1C)


class LinearWithGivenBias(nn.Linear):
    """A linear map whose bias is given with its input."""

    def forward(self, x_BLC: Tensor, bias_C: Tensor) -> Tensor:
        """The weight's product, plus the bias."""
        return F.linear(x_BLC, self.weight, bias_C)


class CosineAttention(nn.Module):
    """Attention between unit vectors, each head with a learned softmax scale; keys have no bias."""

    def __init__(self, config: VisualDecoderConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = LinearWithGivenBias(config.width, 3 * config.width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(config.width))
        self.v_bias = nn.Parameter(torch.zeros(config.width))
        log_scale = torch.full((config.num_heads,), math.log(INITIAL_ATTENTION_SCALE))
        self.log_scale = nn.Parameter(log_scale)
        self.out = nn.Linear(config.width, config.width)

    def forward(
        self, x_BLC: Tensor, mask_LK: Tensor | None, cached: KeysValues | None
    ) -> tuple[Tensor, KeysValues]:
        """Attention of x to itself and to cached keys and values; the output and all keys and values."""
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv_BL3NH = self.qkv(x_BLC, bias).unflatten(2, (3, self.num_heads, -1))
        unit_BL2NH, v_BKNH = F.normalize(qkv_BL3NH[:, :, :2], dim=-1), qkv_BL3NH[:, :, 2]
        scale_N1 = self.log_scale.clamp(max=math.log(MAX_ATTENTION_SCALE)).exp()[:, None]
        q_BLNH = (unit_BL2NH[:, :, 0] * scale_N1).to(v_BKNH.dtype)
        k_BKNH = unit_BL2NH[:, :, 1].to(v_BKNH.dtype)
        if cached is not None:
            k_BKNH, v_BKNH = torch.cat([cached[0], k_BKNH], dim=1), torch.cat([cached[1], v_BKNH], dim=1)
        attended_BLC = attend(q_BLNH, k_BKNH, v_BKNH, mask_LK).flatten(2)
        return self.out(attended_BLC), (k_BKNH, v_BKNH)


class FeedForward(nn.Module):
    """Two linear maps with a tanh-approximated GELU between."""

    def __init__(self, config: VisualDecoderConfig) -> None:
        super().__init__()
        self.wide = nn.Linear(config.width, config.mlp_ratio * config.width)
        self.narrow = nn.Linear(config.mlp_ratio * config.width, config.width)

    def forward(self, x_BLC: Tensor) -> Tensor:
        wide_BLF = self.wide(x_BLC)
        if cpu_kernels.is_bfloat16_on_cpu(wide_BLF):
            return self.narrow(cpu_kernels.exact_gelu(wide_BLF))
        return self.narrow(F.gelu(wide_BLF, approximate="tanh"))


class DropPath(nn.Module):
    """Stochastic depth: in training, zeroes a residual branch for random samples and scales the others up."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x_BLC: Tensor) -> Tensor:
        if not self.training or self.probability == 0:
            return x_BLC
        is_kept_B11 = torch.rand(x_BLC.shape[0], 1, 1, device=x_BLC.device) >= self.probability
        return x_BLC * is_kept_B11 / (1 - self.probability)


class AdaptiveBlock(nn.Module):
    """Attention and feed-forward as residual branches, each gated, scaled and shifted by the condition."""

    def __init__(self, config: VisualDecoderConfig, drop_path: float) -> None:
        super().__init__()
        self.modulation = nn.Linear(config.width, 6 * config.width)
        self.attention = CosineAttention(config)
        self.feed_forward = FeedForward(config)
        self.drop_path = DropPath(drop_path)

    def modulation_of(self, cond_BC: Tensor) -> Modulation:
        """This block's modulation for a condition; the same at every scale of an image."""
        parts = self.modulation(F.silu(cond_BC)).unflatten(1, (1, 6, -1)).unbind(2)
        return Modulation(*parts)

    def forward(
        self, x_BLC: Tensor, modulation: Modulation, mask_LK: Tensor | None, cached: KeysValues | None
    ) -> tuple[Tensor, KeysValues]:
        """The block's output, (B, L, C), and its keys and values, the cached ones included."""
        normed_BLC = modulate(x_BLC, modulation.scale_attention, modulation.shift_attention)
        attended_BLC, keys_values = self.attention(normed_BLC, mask_LK, cached)
        x_BLC = torch.addcmul(x_BLC, modulation.gate_attention, self.drop_path(attended_BLC))
        normed_BLC = modulate(x_BLC, modulation.scale_forward, modulation.shift_forward)
        forwarded_BLC = self.feed_forward(normed_BLC)
        return torch.addcmul(x_BLC, modulation.gate_forward, self.drop_path(forwarded_BLC)), keys_values
