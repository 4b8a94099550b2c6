"""Random replacement of image codes in teacher forcing, so that a model learns to correct its own mistakes.

Trained on correct codes only, the fine scales of a drawing never learn to make up for a wrong coarse one.
Source: self-correction of arXiv:2412.04431, here with whole codes in place of bits.
"""

import torch
from torch import Tensor

from model.config import ImageTokenizerConfig
from model.scales import num_tokens

# Shape legend: B = images, L = tokens of the pyramid.


def random_replacements(
    count: int, config: ImageTokenizerConfig, max_share: float, generator: torch.Generator | None = None
) -> Tensor:
    """Codes to put in place of the correct ones, -1 where the correct one stays, (B, L).

    Each image has its own share of replaced codes, uniform from 0 to `max_share`; the new codes are uniform
    over the codebook.
    """
    shape = count, num_tokens(config.scales)
    share_B1 = max_share * torch.rand(count, 1, generator=generator)
    codes_BL = torch.randint(config.codebook_size, shape, generator=generator)
    return torch.where(torch.rand(shape, generator=generator) < share_B1, codes_BL, -1)
