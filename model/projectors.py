"""The three bridges: vision features into the language model, the pyramid into it, and its states back out.

Source: spec section 1.1. The released generation projectors also hold a layer norm that is never applied;
left out.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class Projector(nn.Module):
    """Linear, exact GELU, linear: (..., inputs) -> (..., outputs)."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, hidden)
        self.second = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.gelu(self.first(x)))


class UnderstandingProjector(Projector):
    """Vision features -> language model width."""

    def __init__(self, vision_width: int, language_width: int) -> None:
        super().__init__(vision_width, language_width, language_width)


class GenerationInputProjector(Projector):
    """Pyramid tokens of the visual decoder -> language model width."""

    def __init__(self, decoder_width: int, language_width: int) -> None:
        super().__init__(decoder_width, decoder_width, language_width)


class GenerationOutputProjector(Projector):
    """Last hidden states of the language model -> visual decoder width."""

    def __init__(self, language_width: int, decoder_width: int) -> None:
        super().__init__(language_width, language_width, decoder_width)
