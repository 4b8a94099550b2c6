"""Kernels of liger-kernel that compute several steps at once, for a GPU, where it is installed.

The one place that knows liger-kernel. Without it, or on a CPU, nothing here is used.
"""

from torch import Tensor
from transformers import PreTrainedModel

try:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss, _apply_liger_kernel_to_instance
except ImportError:
    LigerFusedLinearCrossEntropyLoss = _apply_liger_kernel_to_instance = None

# Shape legend: P = positions, D = language model width, V = vocabulary size.


def has_fused_loss(x: Tensor) -> bool:
    """Whether `linear_cross_entropy` can compute the loss of these states."""
    return LigerFusedLinearCrossEntropyLoss is not None and x.is_cuda and x.numel() > 0


def linear_cross_entropy(hidden_PD: Tensor, weight_VD: Tensor, targets_P: Tensor) -> Tensor:
    """Sum of cross-entropy in nats of a head's logits, which are never in memory as a whole, ()."""
    return LigerFusedLinearCrossEntropyLoss(reduction="sum")(weight_VD, hidden_PD, targets_P)


def fuse_layers(language_model: PreTrainedModel) -> bool:
    """Give a LLaMA on a GPU liger-kernel's norms, rotary positions and feed-forward, in place; whether it
    did.
    """
    if _apply_liger_kernel_to_instance is None or language_model.device.type != "cuda":
        return False
    _apply_liger_kernel_to_instance(
        model=language_model,
        rope=True,
        rms_norm=True,
        swiglu=True,
        cross_entropy=False,
        fused_linear_cross_entropy=False,
    )
    return True
