"""Layout of image tokens: where each scale begins, which scale a token belongs to, who may attend to whom.

The tokens of an image are one sequence, scale after scale from coarse to fine, each scale row by row: the
token pyramid. Source: section 3 of arXiv:2404.02905 (next-scale prediction).
"""

import torch
from torch import Tensor

# Shape legend: L = tokens of all scales.


def scale_offsets(scales: tuple[int, ...]) -> list[int]:
    """Index of the first token of each scale, and, as last entry, the number of all tokens."""
    offsets = [0]
    for side in scales:
        offsets.append(offsets[-1] + side * side)
    return offsets


def num_tokens(scales: tuple[int, ...]) -> int:
    """Tokens of all scales together, 680 for the published 256-pixel model."""
    return scale_offsets(scales)[-1]


def scale_of_token(scales: tuple[int, ...], device: torch.device | None = None) -> Tensor:
    """Index of the scale that each token belongs to, (L,)."""
    counts = torch.tensor([side * side for side in scales], device=device)
    # With the length given, a GPU need not be waited for.
    return torch.arange(len(scales), device=device).repeat_interleave(counts, output_size=num_tokens(scales))


def block_causal_mask(scales: tuple[int, ...], device: torch.device | None = None) -> Tensor:
    """True where attention is allowed: a token sees its own scale and every coarser one, (L, L)."""
    scale_L = scale_of_token(scales, device)
    return scale_L[:, None] >= scale_L[None, :]
