"""Encoded samples as one batch of tensors: padded to the longest, or packed one after another in one row.

Both are the arguments of the model's `loss_sums`. In a packed row, positions start anew with every sample and
there is no attention mask. By that samples are kept apart: transformers builds a block-diagonal causal mask,
or in training the kernel is told where samples begin (`training_attention`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.losses import IGNORED

# Shape legend: B = batch, T = positions, I = input images, G = drawn images, L = image tokens.


@dataclass(frozen=True)
class Encoded:
    """One training sample: ids and labels (T,), input images (I, 3, H, W), drawn images (G, 3, H, W) in [-1,
    1].

    Args:
        codes: The drawn images as codes, (G, L), in place of their pixels.
        is_unconditional: The sample has the empty instruction and opens its image with the null start, for
            guidance.
    """

    input_ids: Tensor
    labels: Tensor
    pixel_values: Tensor
    generation_pixel_values: Tensor
    codes: Tensor | None = None
    is_unconditional: bool = False

    @property
    def num_drawings(self) -> int:
        """How many images it draws."""
        return len(self.generation_pixel_values if self.codes is None else self.codes)


def padded(samples: Sequence[Encoded], pad_id: int) -> dict[str, Tensor]:
    """A batch of samples of any kinds, padded on the right."""
    ids = [sample.input_ids for sample in samples]
    return {
        "input_ids": pad(ids, pad_id),
        "attention_mask": pad([torch.ones_like(row) for row in ids], 0),
        "labels": pad([sample.labels for sample in samples], IGNORED),
        **_images(samples),
    }


def packed(samples: Sequence[Encoded]) -> dict[str, Tensor]:
    """A batch of one row that holds all samples, in order, without padding."""
    # The first token of a sample would be predicted from the last one of the sample before.
    labels = [torch.cat([sample.labels.new_tensor([IGNORED]), sample.labels[1:]]) for sample in samples]
    return {
        "input_ids": torch.cat([sample.input_ids for sample in samples])[None],
        "position_ids": torch.cat([torch.arange(len(sample.input_ids)) for sample in samples])[None],
        "labels": torch.cat(labels)[None],
        **_images(samples),
    }


def pad(rows: Sequence[Tensor], value: int) -> Tensor:
    """Rows of several lengths as one tensor, (B, T), filled up on the right."""
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value)


def _images(samples: Sequence[Encoded]) -> dict[str, Tensor]:
    """Images of all samples, and what is known of each drawn one."""
    images = {"pixel_values": torch.cat([sample.pixel_values for sample in samples])}
    codes = [sample.codes for sample in samples if sample.codes is not None]
    pixels = torch.cat([sample.generation_pixel_values for sample in samples])
    if codes:
        # Pixels beside codes are refused by `TargetImages`.
        images["codes"] = torch.cat(codes)
    if not codes or len(pixels):
        images["generation_pixel_values"] = pixels
    unconditional = [sample.is_unconditional for sample in samples for _ in range(sample.num_drawings)]
    images["unconditional"] = torch.tensor(unconditional, dtype=torch.bool)
    return images
