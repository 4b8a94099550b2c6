"""Wrong codes to learn from: what a model sees of its own drawing is never quite right.

Trained on right codes only, coarse and fine scales of a drawing disagree: the fine ones have never seen how
to make up for a coarse one. Source: self-correction of arXiv:2412.04431, with whole codes in place of bits.
"""

import torch
from torch import Tensor

from model.config import ImageTokenizerConfig
from model.scales import num_tokens

# Shape legend: B = pictures, L = tokens of the pyramid.


def random_replacements(
    count: int, config: ImageTokenizerConfig, most: float, generator: torch.Generator | None = None
) -> Tensor:
    """Codes to draw in place of the right ones, -1 where none, (B, L).

    Of every picture another share of the codes, evenly from 0 to `most`, is replaced by any code at all.
    """
    shape = count, num_tokens(config.scales)
    share_B1 = most * torch.rand(count, 1, generator=generator)
    codes_BL = torch.randint(config.codebook_size, shape, generator=generator)
    return torch.where(torch.rand(shape, generator=generator) < share_B1, codes_BL, -1)
