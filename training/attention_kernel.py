"""The attention kernel that models built by transformers train with."""

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import PreTrainedModel

from training.precision import BFLOAT16


@contextmanager
def quick_attention(model: PreTrainedModel, precision: str) -> Iterator[None]:
    """Plain products instead of PyTorch's fused kernel for as long as the block lasts, in bfloat16 on a CPU.

    There the fused kernel is slow: a vision step takes 1.5 to 2 times as long, and a third of a step of
    stage 3 goes into its gradient. In float32 they are equal.
    """
    before = model.config._attn_implementation
    if precision == BFLOAT16 and model.device.type == "cpu":
        model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)
