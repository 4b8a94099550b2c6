"""The loss of a micro-batch, and what a step reports of it."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.losses import IGNORED
from model.modeling import TextLoss, VargptForConditionalGeneration
from training.params import StageParams


class StageLoss(nn.Module):
    """Cross-entropy of a batch in nats, summed over text tokens and over each image scale, (1 + scales,).

    Args:
        force_all_modules: Whether modules without images in a batch run too; see `loss_sums`.
    """

    def __init__(
        self, model: VargptForConditionalGeneration, stage: StageParams, force_all_modules: bool = False
    ) -> None:
        super().__init__()
        self.model, self.softness, self.force_all_modules = model, stage.softness, force_all_modules
        self.text: TextLoss = "learned" if stage.text_weight else "measured"

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        sums = self.model.loss_sums(
            **batch, softness=self.softness, text=self.text, force_all_modules=self.force_all_modules
        )
        joined = torch.cat([sums.text.reshape(1), sums.image_by_scale])
        if joined.requires_grad:
            return joined
        # No parameter that learns was used, as for text alone in stage 3. Gradients are zero, not missing, so
        # that all processes exchange the same ones.
        return joined + 0 * sum(p.sum() for p in self.parameters() if p.requires_grad)


def token_counts(batch: dict[str, Tensor], scales: tuple[int, ...]) -> Tensor:
    """Target tokens of a batch: of text, then of each image scale, (1 + scales,)."""
    num_text = (batch["labels"][:, 1:] != IGNORED).sum()
    num_images = len(batch["codes"] if "codes" in batch else batch["generation_pixel_values"])
    return torch.tensor([float(num_text), *(float(num_images * side * side) for side in scales)])


@dataclass(frozen=True)
class StepMetrics:
    """Metrics of one training step over all processes.

    Args:
        step: Counted from 0.
        losses: Mean cross-entropy in nats per token, of text, image and each image scale that there was.
        gradient_norm: Before clipping.
        num_tokens: Target tokens of text and images.
        num_skipped: Steps of this run so far that were skipped, as their gradient was not finite.
    """

    step: int
    learning_rate: float
    losses: dict[str, float]
    gradient_norm: float
    num_tokens: int
    num_skipped: int


def mean_losses(sums: Tensor, counts: Tensor) -> dict[str, float]:
    """Mean losses of text, image and each image scale, where there were target tokens."""
    by_name = {"text": (sums[0], counts[0]), "image": (sums[1:].sum(), counts[1:].sum())}
    for scale, pair in enumerate(zip(sums[1:], counts[1:], strict=True)):
        by_name[f"image_scale_{scale + 1}"] = pair
    return {name: float(total / count) for name, (total, count) in by_name.items() if count > 0}
