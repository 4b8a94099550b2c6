"""Faster replacements of PyTorch kernels for bfloat16 on a CPU, where PyTorch's own are slow.

The training of `tiny` uses them, and serving on processors without bfloat16. Beside `training_attention` the
one place in this package that asks whether it runs on a CPU.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Shape legend: B = batch, N = heads, Q = query tokens, K = key tokens, H = channels of a head, F = features,
# R = rows, I = inputs, O = outputs.


# With these instructions products of bfloat16 matrices are 2 (AVX-512) to 7 (AMX) times as fast as those of
# float32.
BFLOAT16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16")
# Products of fewer rows take no longer in bfloat16 than the widening of the weights would.
_WIDENED_ROWS = 64
# Weights are widened so many at a time: their 16 MiB in float32 stay in the cache.
_WIDENED_WEIGHTS = 1 << 22


def multiplies_bfloat16() -> bool:
    """Whether this processor has instructions for bfloat16."""
    able = torch.cpu.get_capabilities()
    return any(able.get(name, False) for name in BFLOAT16_INSTRUCTIONS)


class WideningLinear(nn.Linear):
    """A linear map with bfloat16 weights that multiplies in float32 where there are many rows; no gradients.

    Without bfloat16 instructions that is 2 to 5 times as fast from 64 rows on, and more exact. The weights
    stay in bfloat16: a piece at a time is widened.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not is_bfloat16_on_cpu(x) or x[..., 0].numel() < _WIDENED_ROWS:
            return super().forward(x)
        rows_RI = x.flatten(0, -2).float()
        product_RO = rows_RI.new_empty(len(rows_RI), self.out_features)
        step = max(_WIDENED_WEIGHTS // self.in_features, 1)
        for first in range(0, self.out_features, step):
            piece = slice(first, first + step)
            torch.mm(rows_RI, self.weight[piece].float().mT, out=product_RO[:, piece])
        if self.bias is not None:
            product_RO += self.bias
        return product_RO.to(x.dtype).unflatten(0, x.shape[:-1])


def widen_linear_maps(model: nn.Module) -> None:
    """Turn the bfloat16 linear maps of a model that only answers into `WideningLinear`; weights stay."""
    for module in model.modules():
        if type(module) is nn.Linear and module.weight.dtype is torch.bfloat16:
            module.__class__ = WideningLinear


def is_bfloat16_on_cpu(x: Tensor) -> bool:
    """Whether a tensor is one for which the kernels of this module are the faster ones."""
    return x.dtype is torch.bfloat16 and x.device.type == "cpu"


def plain_attention(q_BNQH: Tensor, k_BNKH: Tensor, v_BNKH: Tensor, mask_QK: Tensor | None) -> Tensor:
    """Softmax attention with scale 1 as two matrix products: a quarter of the fused kernel's time."""
    scores_BNQK = q_BNQH @ k_BNKH.mT
    if mask_QK is not None:
        scores_BNQK = scores_BNQK.masked_fill(~mask_QK, float("-inf"))
    return scores_BNQK.softmax(dim=-1) @ v_BNKH


def exact_gelu(x_BLF: Tensor) -> Tensor:
    """GELU without the tanh approximation: a fifth of its time.

    Both differ by 0.0005 at most, an eighth of bfloat16's rounding error between 1 and 2.
    """
    return F.gelu(x_BLF, approximate="none")
