"""The language model's head, which turns states into words, and its loss without logits of all positions."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model import fused_kernels

# Shape legend: P = supervised positions, D = language model width, V = vocabulary size.

# Logits that are in memory at a time: 64 MiB of float32, with their gradient twice that. The 32,064 words of
# `7b` at 4,096 positions would take 500 MiB, and as much again for each of gradient and softmax.
CHUNK_LOGITS = 1 << 24


class TextHead(nn.Linear):
    """Logits of the next word, or, given the right words, their loss.

    Both are calls of one module, so that an engine which gathers its weights (ZeRO-3) does it once for
    either.
    """

    def forward(self, hidden_PD: Tensor, targets_P: Tensor | None = None) -> Tensor:
        """Logits for states of any leading shape; or the sum of cross-entropy in nats over targets, ().

        Logits of more than `CHUNK_LOGITS` are computed chunk by chunk, and again in the backward pass.
        """
        if targets_P is None:
            return super().forward(hidden_PD)
        if fused_kernels.has_fused_loss(hidden_PD):
            return fused_kernels.linear_cross_entropy(hidden_PD, self.weight, targets_P)
        size = max(CHUNK_LOGITS // self.out_features, 1)
        if len(targets_P) <= size:
            return self._nats(hidden_PD, targets_P)
        total = hidden_PD.new_zeros((), dtype=torch.float32)
        for hidden_chunk, targets_chunk in zip(hidden_PD.split(size), targets_P.split(size), strict=True):
            total = total + checkpoint(
                self._nats, hidden_chunk, targets_chunk, use_reentrant=False, preserve_rng_state=False
            )
        return total

    def _nats(self, hidden_PD: Tensor, targets_P: Tensor) -> Tensor:
        logits_PV = F.linear(hidden_PD, self.weight, self.bias)
        return F.cross_entropy(logits_PV.float(), targets_P, reduction="sum")


def with_text_head(linear: nn.Linear) -> TextHead:
    """The same weights in a TextHead."""
    with torch.device("meta"):
        head = TextHead(linear.in_features, linear.out_features, bias=linear.bias is not None)
    # With the weights goes transformers' mark that they are initialized: it must not draw others.
    head.__dict__.update(linear.__dict__)
    return head
