"""The kernel by which transformers' models attend in training, where a row may hold several samples.

flash-attn where it is installed, for bfloat16 on a GPU; plain products for bfloat16 on a CPU; else PyTorch's
kernel, called for each sample of a packed row. One call for the whole row would take a mask, which rules out
PyTorch's own FlashAttention, and would compute all attention across samples only to drop it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import is_flash_attn_2_available

# Shape legend: B = batch, N = heads, T = positions, H = channels of a head, S = samples.

FLASH, PLAIN, FUSED, BY_SAMPLE = "flash_attention_2", "eager", "sdpa", "sdpa_by_sample"


@contextmanager
def training_attention(model: PreTrainedModel, precision: str, is_compiled: bool = False) -> Iterator[None]:
    """Within the block, a transformers model attends by the quickest kernel there is.

    Args:
        precision: Of autocast, as accelerate names it.
        is_compiled: Whether its blocks are compiled, which the lengths of samples would have done anew for
            every row.
    """
    before = model.config._attn_implementation
    model.set_attn_implementation(_kernel(model.device.type, precision == "bf16", is_compiled))
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _kernel(device_type: str, is_bfloat16: bool, is_compiled: bool) -> str:
    if is_bfloat16 and device_type == "cuda" and is_flash_attn_2_available():
        return FLASH
    if is_bfloat16 and device_type == "cpu":
        # With the fused kernel a step of the vision tower takes 1.5 to 2 times as long, and a third of a step
        # of stage 3 goes into its gradient.
        return PLAIN
    return FUSED if is_compiled else BY_SAMPLE


def sample_bounds(kernel: str, position_ids_BT: Tensor | None) -> dict[str, Any]:
    """What a kernel has to know of a packed row to keep its samples apart; nothing for one that has a mask.

    Found once for all layers, since a GPU has to be waited for. flash-attn is told as transformers names it
    (`FlashAttentionKwargs`).
    """
    if position_ids_BT is None or kernel not in (FLASH, BY_SAMPLE):
        return {}
    assert len(position_ids_BT) == 1, "a packed batch is one row"
    starts_S = (position_ids_BT[0] == 0).nonzero()[:, 0]
    bounds = [*starts_S.tolist(), position_ids_BT.shape[1]]
    lengths = [end - start for start, end in pairwise(bounds)]
    if kernel == BY_SAMPLE:
        return {"sample_lengths": lengths}
    bounds_S = torch.tensor(bounds, dtype=torch.int32, device=position_ids_BT.device)
    return {
        "cu_seq_lens_q": bounds_S,
        "cu_seq_lens_k": bounds_S,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
    }


def _attend_by_sample(
    module: nn.Module,
    q_BNTH: Tensor,
    k_BNTH: Tensor,
    v_BNTH: Tensor,
    mask: Tensor | None,
    sample_lengths: Sequence[int] | None = None,
    **named: Any,
) -> tuple[Tensor, None]:
    """PyTorch's kernel as transformers calls it, (B, T, N, H); for each sample where a row holds several."""
    if sample_lengths is None:
        return sdpa_attention_forward(module, q_BNTH, k_BNTH, v_BNTH, mask, **named)
    samples = zip(*(x.split(list(sample_lengths), dim=2) for x in (q_BNTH, k_BNTH, v_BNTH)), strict=True)
    attended = [sdpa_attention_forward(module, *sample, None, **named)[0] for sample in samples]
    return torch.cat(attended, dim=1), None


def _mask_of_padding(*, attention_mask: Tensor | None = None, **named: Any) -> Tensor | None:
    """A mask where there is padding; without, each sample is plainly causal."""
    return None if attention_mask is None else sdpa_mask(attention_mask=attention_mask, **named)


ALL_ATTENTION_FUNCTIONS.register(BY_SAMPLE, _attend_by_sample)
ALL_MASK_ATTENTION_FUNCTIONS.register(BY_SAMPLE, _mask_of_padding)
