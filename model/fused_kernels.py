"""The fused loss and norms of liger-kernel, for a GPU, where it is installed.

The one place that knows liger-kernel. Without it, or on a CPU, nothing here is used.
"""

from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

try:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss
    from liger_kernel.transformers.functional import liger_rms_norm
except ImportError:
    LigerFusedLinearCrossEntropyLoss = liger_rms_norm = None

# Shape legend: P = positions, D = language model width, V = vocabulary size.


def has_fused_loss(x: Tensor) -> bool:
    """Whether `linear_cross_entropy` can compute the loss of these states."""
    return LigerFusedLinearCrossEntropyLoss is not None and x.is_cuda and x.numel() > 0


def linear_cross_entropy(hidden_PD: Tensor, weight_VD: Tensor, targets_P: Tensor) -> Tensor:
    """Sum of cross-entropy in nats of a head's logits, which are never in memory as a whole, ()."""
    return LigerFusedLinearCrossEntropyLoss(reduction="sum")(weight_VD, hidden_PD, targets_P)


class FusedRMSNorm(LlamaRMSNorm):
    """LLaMA's norm as one kernel on a GPU; on a CPU it stays what it is."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        if not hidden_states.is_cuda:
            return super().forward(hidden_states)
        # Not in place: a gradient that others read, too, must stay.
        return liger_rms_norm(hidden_states, self.weight, self.variance_epsilon, in_place=False)


def fuse_norms(model: nn.Module) -> None:
    """Turn the norms of a LLaMA into `FusedRMSNorm` where liger-kernel is installed; weights stay."""
    if liger_rms_norm is None:
        return
    for module in model.modules():
        if type(module) is LlamaRMSNorm:
            module.__class__ = FusedRMSNorm
