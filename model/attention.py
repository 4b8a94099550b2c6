"""Softmax attention, with the kernel chosen here: PyTorch's, flash-attn, or plain products on a CPU."""

import torch.nn.functional as F
from torch import Tensor

from model import cpu_kernels

try:
    from flash_attn import flash_attn_func
except ImportError:
    flash_attn_func = None

# Shape legend: B = batch, Q = query tokens, K = key tokens, N = heads, H = channels of a head, R = rows of a
# key-value cache, T = their new positions.


def attend(q_BQNH: Tensor, k_BKNH: Tensor, v_BKNH: Tensor, mask_QK: Tensor | None = None) -> Tensor:
    """Attention of the visual decoder, with softmax scale 1, (B, Q, N, H).

    Queries are unit vectors times a learned scale, keys unit vectors. flash-attn is used in half precision on
    CUDA where there is no mask, that is, for drawing scale by scale. Training needs the block-causal mask and
    uses PyTorch's kernel, or in bfloat16 on a CPU that of `cpu_kernels`.
    """
    is_half_on_cuda = q_BQNH.device.type == "cuda" and q_BQNH.element_size() == 2
    if flash_attn_func is not None and mask_QK is None and is_half_on_cuda:
        return flash_attn_func(q_BQNH, k_BKNH, v_BKNH, softmax_scale=1.0)
    q_BNQH, k_BNKH, v_BNKH = (x.transpose(1, 2) for x in (q_BQNH, k_BKNH, v_BKNH))
    if cpu_kernels.is_bfloat16_on_cpu(q_BNQH):
        attended_BNQH = cpu_kernels.plain_attention(q_BNQH, k_BNKH, v_BNKH, mask_QK)
    else:
        attended_BNQH = F.scaled_dot_product_attention(q_BNQH, k_BNKH, v_BNKH, attn_mask=mask_QK, scale=1.0)
    return attended_BNQH.transpose(1, 2)


def attend_cached(
    q_RTNH: Tensor, k_RKNH: Tensor, v_RKNH: Tensor, mask_R1TK: Tensor | None, is_causal: bool
) -> Tensor:
    """Attention of the language model over cached keys and values, with the usual scale, (R, T, N, H).

    Keys and values may have fewer heads than queries (grouped-query attention). Rows end at different
    positions, which takes a mask, and flash-attn has none.
    """
    q_RNTH, k_RNKH, v_RNKH = (x.transpose(1, 2) for x in (q_RTNH, k_RKNH, v_RKNH))
    is_grouped = q_RNTH.shape[1] != k_RNKH.shape[1]
    attended_RNTH = F.scaled_dot_product_attention(
        q_RNTH, k_RNKH, v_RNKH, attn_mask=mask_R1TK, is_causal=is_causal, enable_gqa=is_grouped
    )
    return attended_RNTH.transpose(1, 2)
