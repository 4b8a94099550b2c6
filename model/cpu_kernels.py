"""Kernels that make small models quick to train in bfloat16 on a CPU, where PyTorch's own are slow.

Only `tiny` in training comes here. On a GPU, and in float32, every function of this module is passed by.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

# Shape legend: B = batch, N = heads, Q = query tokens, K = key tokens, H = channels of a head, F = features.


def are_for(x: Tensor) -> bool:
    """Whether these kernels are the quick ones for a tensor."""
    return x.dtype is torch.bfloat16 and x.device.type == "cpu"


def plain_attention(q_BNQH: Tensor, k_BNKH: Tensor, v_BNKH: Tensor, mask_QK: Tensor | None) -> Tensor:
    """Softmax attention with scale 1, written out: a quarter of the time of the fused kernel."""
    scores_BNQK = q_BNQH @ k_BNKH.mT
    if mask_QK is not None:
        scores_BNQK = scores_BNQK.masked_fill(~mask_QK, float("-inf"))
    return scores_BNQK.softmax(dim=-1) @ v_BNKH


def exact_gelu(x_BLF: Tensor) -> Tensor:
    """GELU without the tanh approximation: a fifth of the time.

    Both differ by 0.0005 at most, an eighth of what bfloat16 rounds numbers from 1 to 2 by.
    """
    return F.gelu(x_BLF, approximate="none")


@contextmanager
def eager_attention(model: PreTrainedModel, precision: str) -> Iterator[None]:
    """Let a model of transformers use plain products instead of the fused kernel, while the block lasts.

    With the fused kernel a vision step takes 1.5 to 2 times as long, and a third of a step of stage 3 goes
    into its gradient.

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
