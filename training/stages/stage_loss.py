"""The loss of a micro-batch, and what a step reports of it."""

from collections.abc import Sequence
from typing import NamedTuple

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


class Counted(NamedTuple):
    """What the batches of a step hold, over all processes.

    Args:
        targets: Target tokens of text, then of each image scale, (1 + K,).
        positions: Of the language model, without padding; squares are those of each sample's number of them.
    """

    targets: Tensor
    positions: float
    squares: float
    pictures: float
    drawings: float


def counted(engine: Engine, batches: Sequence[dict[str, Tensor]], scales: tuple[int, ...]) -> Counted:
    """Count together with all other processes."""
    rows = []
    for batch in batches:
        lengths = _lengths(batch)
        others = [lengths.sum(), lengths.square().sum(), len(batch["pixel_values"])]
        rows.append(
            torch.cat([token_counts(batch, scales), torch.tensor([float(count) for count in others])])
        )
    *targets, positions, squares, pictures = engine.total(torch.stack(rows).double().sum(0))
    # The first scale of an image has one token.
    return Counted(
        torch.stack(targets).float(), float(positions), float(squares), float(pictures), float(targets[1])
    )


def _lengths(batch: dict[str, Tensor]) -> Tensor:
    """Positions of each sample, in any order."""
    if "attention_mask" in batch:
        return batch["attention_mask"].sum(dim=1)
    # A packed row: positions start anew with every sample.
    starts = (batch["position_ids"][0] == 0).nonzero()[:, 0]
    return torch.diff(starts, append=starts.new_tensor([batch["position_ids"].shape[1]]))


def on_device(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The batch where a model computes."""
    return {name: value.to(device, non_blocking=True) for name, value in batch.items()}


def mean_losses(sums: Tensor, counts: Tensor) -> dict[str, float]:
    """Mean losses of text, image and each image scale, where there were target tokens."""
    by_name = {"text": (sums[0], counts[0]), "image": (sums[1:].sum(), counts[1:].sum())}
    for scale, pair in enumerate(zip(sums[1:], counts[1:], strict=True)):
        by_name[f"image_scale_{scale + 1}"] = pair
    return {name: float(total / count) for name, (total, count) in by_name.items() if count > 0}
