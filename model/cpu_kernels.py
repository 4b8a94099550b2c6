"""Faster replacements of PyTorch kernels for bfloat16 on a CPU, where PyTorch's own are slow.

Only the training of `tiny` uses them; the one place in this package that asks whether it runs on a CPU.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

# Shape legend: B = batch, N = heads, Q = query tokens, K = key tokens, H = channels of a head, F = features.


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


@contextmanager
def eager_attention(model: PreTrainedModel, precision: str) -> Iterator[None]:
    """Within the block, a transformers model computes attention as plain products (`eager`).

    With the fused kernel (`sdpa`) a step of the vision tower takes 1.5 to 2 times as long, and a third of a
    step of stage 3 goes into its gradient.

    Args:
        precision: Of autocast, as accelerate names it; nothing is changed unless it is `bf16`, on a CPU.
    """
    before = model.config._attn_implementation
    if precision == "bf16" and model.device.type == "cpu":
        model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)
