"""A running average of weights: smoother than the last step, and what is published."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

WARM_UP = 10


class WeightAverage:
    """Exponential moving average of the learning parameters, with a shorter memory while it is young."""

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float) -> None:
        self.parameters = list(parameters)
        self.decay = decay
        self.averages = [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after step number `step`, counted from 1."""
        decay = min(self.decay, (1 + step) / (WARM_UP + step))
        torch._foreach_lerp_(self.averages, self.parameters, 1 - decay)

    def keep(self) -> None:
        """The averages become the weights."""
        self._write(self.averages)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The averages stand in for the weights, for as long as the block lasts."""
        live = [parameter.detach().clone() for parameter in self.parameters]
        self._write(self.averages)
        try:
            yield
        finally:
            self._write(live)

    @torch.no_grad()
    def _write(self, values: list[Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)
