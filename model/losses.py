"""Cross-entropy of text and of image codes, as sums and counts of tokens.

Sums of several batches or processes can be added before they are divided, so the mean is the same however a
step is split. Prompts and padding are not supervised, unlike in the released VARGPT.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from model.scales import scale_of_token

# Shape legend: G = drawn images, L = image tokens, V = vocabulary or codebook size, K = scales,
# P = supervised positions.

IGNORED = -100


@dataclass(frozen=True)
class LossSums:
    """Sums of cross-entropy in nats, and how many tokens each covers; those of images by scale, (K,)."""

    text: Tensor
    num_text: Tensor
    image_by_scale: Tensor
    num_image_by_scale: Tensor

    @property
    def text_mean(self) -> Tensor:
        """Mean cross-entropy of text tokens; 0 without any."""
        return self.text / self.num_text.clamp(min=1)

    @property
    def image_mean(self) -> Tensor:
        """Mean cross-entropy of image tokens, all scales together; 0 without any."""
        return self.image_by_scale.sum() / self.num_image_by_scale.sum().clamp(min=1)

    def mean(self, text_weight: float = 1.0, image_weight: float = 1.0) -> Tensor:
        """Weighted sum of the mean text loss and the mean image loss; a part without tokens is 0."""
        return text_weight * self.text_mean + image_weight * self.image_mean


def text_loss(logits_PV: Tensor, targets_P: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of cross-entropy over supervised positions, and their number."""
    total = F.cross_entropy(logits_PV.float(), targets_P, reduction="sum")
    return total, torch.tensor(len(targets_P), device=targets_P.device)


def image_loss(logits_GLV: Tensor, targets: Tensor, scales: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Sum of cross-entropy over the tokens of each scale, and their number, both (K,).

    Targets are codes (G, L), or soft labels over the codebook (G, L, V).
    """
    targets = targets.mT if targets.dim() == 3 else targets  # classes second, as cross_entropy takes them
    nats_GL = F.cross_entropy(logits_GLV.float().mT, targets, reduction="none")
    scale_L = scale_of_token(scales, nats_GL.device)
    sums_K = nats_GL.new_zeros(len(scales)).index_add(0, scale_L, nats_GL.sum(0))
    counts_K = torch.tensor([side * side * len(logits_GLV) for side in scales], device=nats_GL.device)
    return sums_K, counts_K


def token_counts(batch: Mapping[str, Tensor], scales: tuple[int, ...]) -> Tensor:
    """Target tokens of a batch of `loss_sums`: of text, then of each image scale, (1 + K,), on the CPU."""
    num_text = (batch["labels"][:, 1:] != IGNORED).sum()
    num_drawings = len(batch.get("codes", batch.get("generation_pixel_values", ())))
    return torch.tensor([float(num_text), *(float(num_drawings * side * side) for side in scales)])
