"""Exponential moving average (EMA) of the trained weights, which is published in place of the last step's."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

# After t steps the decay is at most (1 + t) / (WARM_UP + t), so that starting weights are soon forgotten.
WARM_UP = 10


class WeightAverage:
    """EMA of parameters, or of an engine's flat weights, with a smaller decay in the first steps."""

    def __init__(self, parameters: Iterable[Tensor], decay: float) -> None:
        self.parameters = list(parameters)
        self.decay = decay
        self.averages = [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the current parameters, those after step number `step`, counted from 1."""
        decay = min(self.decay, (1 + step) / (WARM_UP + step))
        torch._foreach_lerp_(self.averages, self.parameters, 1 - decay)

    def copy_to_parameters(self) -> None:
        """Overwrite the parameters with their averages."""
        self._set_parameters(self.averages)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the parameters their averages within the block, and their own values back after it."""
        values = [parameter.detach().clone() for parameter in self.parameters]
        self._set_parameters(self.averages)
        try:
            yield
        finally:
            self._set_parameters(values)

    @torch.no_grad()
    def _set_parameters(self, values: list[Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)
