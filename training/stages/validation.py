"""Losses of samples that a stage never trains on."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from model.modeling import VargptForConditionalGeneration
from training.data.batch_loader import BatchLoader
from training.engines.engine import Engine
from training.stages.stage_loss import counted, mean_losses, on_device

HELD_OUT_SAMPLES = 256


class Validation:
    """Mean losses of the first held-out samples, always the same ones; all processes measure together."""

    def __init__(self, engine: Engine, model: VargptForConditionalGeneration, loader: BatchLoader) -> None:
        self.engine, self.model, self.loader = engine, model, loader
        self._batches: list[dict[str, Tensor]] | None = None

    def losses(self) -> dict[str, float]:
        """As `mean_losses`, of the weights as they are; empty where no share of the data is held out."""
        engine = self.engine
        if self._batches is None:
            self._batches = self.loader.held_out(HELD_OUT_SAMPLES, engine.rank, engine.world_size)
        if not self._batches:
            return {}
        with torch.no_grad(), _without_dropout(self.model):
            sums = sum(engine.forward(on_device(batch, engine.device)) for batch in self._batches)
        count = counted(engine, self._batches, self.model.config.scales)
        return mean_losses(engine.total(sums), count.targets)


@contextlib.contextmanager
def _without_dropout(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
