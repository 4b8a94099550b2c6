"""The attention kernel that parts built by transformers train with."""

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import PreTrainedModel

from training.fit import Course


@contextmanager
def quick_attention(model: PreTrainedModel, course: Course) -> Iterator[None]:
    """Plain products instead of PyTorch's fused kernel for as long as the block lasts, in bfloat16 only.

    On a CPU the fused kernel is slow in bfloat16: a vision step takes 1.5 to 2 times as long. In float32 they
    are equal.
    """
    before = model.config._attn_implementation
    if course.precision == "bf16":
        model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)
