"""Softmax attention: the one place that picks a kernel."""

import torch.nn.functional as F
from torch import Tensor

from model import cpu_kernels

try:
    from flash_attn import flash_attn_func
except ImportError:
    flash_attn_func = None

# Shape legend: B = batch, Q = query tokens, K = key tokens, N = heads, H = channels of a head, R = rows of a
# store, T = their new positions.


def attend(q_BQNH: Tensor, k_BKNH: Tensor, v_BKNH: Tensor, mask_QK: Tensor | None = None) -> Tensor:
    """Attention with softmax scale 1, for unit queries and keys times a learned scale, (B, Q, N, H).

    flash-attn takes half precision on a GPU without a mask: drawing, scale by scale. Training needs the block
    mask and takes PyTorch's kernel, or on a CPU in bfloat16 that of `cpu_kernels`.
    """
    is_half_on_cuda = q_BQNH.device.type == "cuda" and q_BQNH.element_size() == 2
    if flash_attn_func is not None and mask_QK is None and is_half_on_cuda:
        return flash_attn_func(q_BQNH, k_BKNH, v_BKNH, softmax_scale=1.0)
    q_BNQH, k_BNKH, v_BNKH = (x.transpose(1, 2) for x in (q_BQNH, k_BKNH, v_BKNH))
    if cpu_kernels.are_for(q_BNQH):
        attended_BNQH = cpu_kernels.plain_attention(q_BNQH, k_BNKH, v_BNKH, mask_QK)
    else:
        attended_BNQH = F.scaled_dot_product_attention(q_BNQH, k_BNKH, v_BNKH, attn_mask=mask_QK, scale=1.0)
    return attended_BNQH.transpose(1, 2)


def attend_step(
    q_RTNH: Tensor, k_RKNH: Tensor, v_RKNH: Tensor, mask_R1TK: Tensor | None, is_causal: bool
) -> Tensor:
    """Attention of the language model over cached positions with the usual scale, (R, T, N, H).

    Keys and values may have fewer heads than queries. Rows of a batch end at different positions, which
    flash-attn's kernel cannot be told; PyTorch's takes the mask.
    """
    q_RNTH, k_RNKH, v_RNKH = (x.transpose(1, 2) for x in (q_RTNH, k_RKNH, v_RKNH))
    is_grouped = q_RNTH.shape[1] != k_RNKH.shape[1]
    attended_RNTH = F.scaled_dot_product_attention(
        q_RNTH, k_RNKH, v_RNKH, attn_mask=mask_R1TK, is_causal=is_causal, enable_gqa=is_grouped
    )
    return attended_RNTH.transpose(1, 2)
