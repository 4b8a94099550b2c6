"""The loss of a micro-batch, and what a step reports of it."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.losses import token_counts
from model.modeling import TextLoss, VargptForConditionalGeneration
from training.engines.engine import Engine
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
        if joined.requires_grad or not torch.is_grad_enabled():
            return joined
        # No parameter that learns was used, as for text alone in stage 3. Gradients are zero, not missing, so
        # that all processes exchange the same ones.
        return joined + 0 * sum(p.sum() for p in self.parameters() if p.requires_grad)


def counted(
    engine: Engine, batches: Sequence[dict[str, Tensor]], scales: tuple[int, ...]
) -> tuple[Tensor, int, int]:
    """Target tokens of all processes, as `token_counts` has them; positions without padding; drawn images."""
    targets = sum(token_counts(batch, scales) for batch in batches)
    # A packed row has no mask, as it has no padding.
    masks = (batch.get("attention_mask", torch.ones_like(batch["input_ids"])) for batch in batches)
    positions = float(sum(mask.sum() for mask in masks))
    *counts, num_positions = engine.total(torch.cat([targets, torch.tensor([positions])]))
    # The first scale of an image has one token.
    return torch.stack(counts), int(num_positions), int(counts[1])


def on_device(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The batch where a model computes."""
    return {name: value.to(device, non_blocking=True) for name, value in batch.items()}


def mean_losses(sums: Tensor, counts: Tensor) -> dict[str, float]:
    """Mean losses of text, image and each image scale, where there were target tokens."""
    by_name = {"text": (sums[0], counts[0]), "image": (sums[1:].sum(), counts[1:].sum())}
    for scale, pair in enumerate(zip(sums[1:], counts[1:], strict=True)):
        by_name[f"image_scale_{scale + 1}"] = pair
    return {name: float(total / count) for name, (total, count) in by_name.items() if count > 0}
