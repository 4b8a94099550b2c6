"""The fused loss of liger-kernel, for a GPU, where it is installed.

The one place that knows liger-kernel. Without it, or on a CPU, nothing here is used.
"""

from torch import Tensor

try:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss
except ImportError:
    LigerFusedLinearCrossEntropyLoss = None

# Shape legend: P = positions, D = language model width, V = vocabulary size.


def has_fused_loss(x: Tensor) -> bool:
    """Whether `linear_cross_entropy` can compute the loss of these states."""
    return LigerFusedLinearCrossEntropyLoss is not None and x.is_cuda and x.numel() > 0


def linear_cross_entropy(hidden_PD: Tensor, weight_VD: Tensor, targets_P: Tensor) -> Tensor:
    """Sum of cross-entropy in nats of a head's logits, which are never in memory as a whole, ()."""
    return LigerFusedLinearCrossEntropyLoss(reduction="sum")(weight_VD, hidden_PD, targets_P)
