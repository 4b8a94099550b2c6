"""Guidance: how far what a prompt makes likely is told apart from what is likely anyway.

Source: classifier-free guidance, arXiv:2207.12598. Its weight multiplies the log ratio of both
probabilities, so it drives every choice to what is most typical of a prompt. The posterior, ours, only takes
away what the empty prompt makes likelier: a class-conditional decoder draws as many right nearer to real
ones, a tiny VARGPT about as near (docs/tiny.md).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# Shape legend: U = guided images, N = tokens of a scale, V = codebook size.


def push(cond_UNV: Tensor, uncond_UNV: Tensor, weights_U: Tensor) -> Tensor:
    """Logits on the line from unconditional (weight 0) to conditional (1) and beyond."""
    return torch.lerp(uncond_UNV, cond_UNV, weights_U[:, None, None])


def weigh(cond_UNV: Tensor, uncond_UNV: Tensor, weights_U: Tensor) -> Tensor:
    """Conditional logits plus weight - 1 times the log probability that a code comes from the prompt, not
    from the empty one: from 0, where only the prompt makes it likely, down to what `push` takes off, where
    only the empty one does.
    """
    cond_UNV = cond_UNV.log_softmax(dim=-1)
    posterior_UNV = F.logsigmoid(cond_UNV - uncond_UNV.log_softmax(dim=-1))
    return cond_UNV + (weights_U - 1)[:, None, None] * posterior_UNV
