"""The three projectors: vision features and image tokens into the language model, its states to the decoder.

Source: arXiv:2501.12327 and its released code, whose generation projectors also hold a layer norm that is
never applied; it is left out.
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
    """Embedded image tokens of the visual decoder -> language model width."""

    def __init__(self, decoder_width: int, language_width: int) -> None:
        super().__init__(decoder_width, decoder_width, language_width)


class GenerationOutputProjector(Projector):
    """Last hidden states of the language model -> visual decoder width."""

    def __init__(self, language_width: int, decoder_width: int) -> None:
        super().__init__(language_width, language_width, decoder_width)
