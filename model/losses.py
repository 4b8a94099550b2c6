"""Losses: summed over real tokens and counted, text and image apart, so that any batch or process can be
weighed.

The published loss is here for parity only; it supervises prompts and padding (spec section 1.6).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from model.scales import scale_of_token

# Shape legend: B = batch, T = positions, G = drawn images, L = image tokens, V = vocabulary or codebook,
# K = scales, P = supervised positions.

IGNORED = -100


@dataclass(frozen=True)
class LossSums:
    """Sums of cross-entropy in nats, and how many tokens each sum covers; image sums by scale."""

    text: Tensor
    num_text: Tensor
    image_by_scale: Tensor
    num_image_by_scale: Tensor

    def mean(self, text_weight: float = 1.0, image_weight: float = 1.0) -> Tensor:
        """The loss to minimise: each part divided by its own number of real tokens; an absent part weighs
        nothing.
        """
        text = self.text / self.num_text.clamp(min=1)
        image = self.image_by_scale.sum() / self.num_image_by_scale.sum().clamp(min=1)
        return text_weight * text + image_weight * image


def text_loss(logits_PV: Tensor, targets_P: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of cross-entropy over supervised positions, and their number."""
    total = F.cross_entropy(logits_PV.float(), targets_P, reduction="sum")
    return total, torch.tensor(len(targets_P), device=targets_P.device)


def image_loss(logits_GLV: Tensor, targets: Tensor, scales: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Cross-entropy summed by scale, and the number of tokens of each scale, both (K,).

    Targets are codes (G, L), or shares of all codes (G, L, V).
    """
    targets = targets.mT if targets.dim() == 3 else targets
    nats_GL = F.cross_entropy(logits_GLV.float().mT, targets, reduction="none")
    scale_L = scale_of_token(scales, nats_GL.device)
    sums_K = nats_GL.new_zeros(len(scales)).index_add(0, scale_L, nats_GL.sum(0))
    counts_K = torch.tensor([side * side * len(logits_GLV) for side in scales], device=nats_GL.device)
    return sums_K, counts_K


def published_loss(
    text_logits_BTV: Tensor, input_ids: Tensor, pad_token_id: int, image_logits_GLV: Tensor, codes_GL: Tensor
) -> Tensor:
    """The released definition: text loss over everything but image positions, plus mean image loss."""
    targets_BT = input_ids.masked_fill(input_ids == pad_token_id, IGNORED)
    text = F.cross_entropy(text_logits_BTV[:, :-1].float().mT, targets_BT[:, 1:], ignore_index=IGNORED)
    return text + F.cross_entropy(image_logits_GLV.float().mT, codes_GL)
