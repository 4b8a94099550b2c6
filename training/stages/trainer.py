"""The training loop of every stage, on one process or many: pure in the step, so any stop can be continued.

Losses are divided by the real token counts of all processes together, so the same samples give the same
gradient however many processes share a step. Drop path, the one random layer (off in `tiny`), draws its
numbers by process: with it, another number of processes drops other branches.
"""

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, broadcast_object_list
from torch import Tensor, nn

from model.cpu_kernels import eager_attention
from model.losses import IGNORED
from model.modeling import VargptForConditionalGeneration
from training.checkpoints import store
from training.checkpoints.state_trees import flatten_state, unflatten_state
from training.data.batch_loader import BatchLoader
from training.errors import Stopped
from training.optimization.gradient_guard import GradientGuard
from training.optimization.optimizer import make_adamw
from training.optimization.schedule import set_learning_rates
from training.optimization.weight_average import WeightAverage
from training.params import OptimizerParams, StageParams
from training.precision import training_device
from training.tiny.muon import make_tiny_optimizer

logger = logging.getLogger(__name__)

# A peer that went away is noticed after this long; a checkpoint of a large model takes less.
COLLECTIVE_TIMEOUT_SECONDS = 120


def make_accelerator(precision: str) -> Accelerator:
    """Processes as torchrun or an operator started them; on the CPU where there is no GPU."""
    return Accelerator(
        cpu=training_device().type == "cpu",
        mixed_precision=precision,
        kwargs_handlers=[
            # A step without pictures leaves some projector without a gradient.
            DistributedDataParallelKwargs(find_unused_parameters=True),
            InitProcessGroupKwargs(timeout=timedelta(seconds=COLLECTIVE_TIMEOUT_SECONDS)),
        ],
    )


class StageLoss(nn.Module):
    """A batch in, sums of cross-entropy out: of words, then of each scale, (1 + scales,)."""

    def __init__(self, model: VargptForConditionalGeneration, softness: float) -> None:
        super().__init__()
        self.model, self.softness = model, softness

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        sums = self.model.loss_sums(**batch, softness=self.softness)
        joined = torch.cat([sums.text.reshape(1), sums.image_by_scale])
        if joined.requires_grad:
            return joined
        # Nothing here reaches what learns, such as words alone in stage 3: gradients are zero, not missing,
        # so that processes still agree on what they exchange.
        return joined + 0 * sum(p.sum() for p in self.parameters() if p.requires_grad)


def token_counts(batch: dict[str, Tensor], scales: tuple[int, ...]) -> Tensor:
    """How many words a batch asks for, and how many image tokens of each scale, (1 + scales,)."""
    words = (batch["labels"][:, 1:] != IGNORED).sum()
    drawn = len(batch["generation_pixel_values"])
    return torch.tensor([float(words), *(float(drawn * side * side) for side in scales)])


@dataclass(frozen=True)
class StepReport:
    """What one step showed: losses in nats per token, rate, and the words and image tokens learned from.

    `num_skipped` counts the steps of this run so far that changed nothing as their gradient was not finite.
    """

    step: int
    learning_rate: float
    losses: dict[str, float]
    gradient_norm: float
    num_tokens: int
    num_skipped: int


class Trainer:
    """Optimizer, average and data of one stage.

    Args:
        learning: The parameters that learn, in a fixed order.
        should_stop: Asked at every step by every process; one that says yes stops all.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: VargptForConditionalGeneration,
        learning: list[nn.Parameter],
        batches: BatchLoader,
        params: StageParams,
        optimizer_params: OptimizerParams,
        seed: int,
        checkpoints: Path,
        should_stop: Callable[[], bool],
    ) -> None:
        self.accelerator, self.params, self.batches, self.seed = accelerator, params, batches, seed
        self.learning, self.checkpoints, self.should_stop = learning, checkpoints, should_stop
        self.clip_norm = optimizer_params.clip_norm
        optimizer = _make_optimizer(model, params, optimizer_params)
        self.loss, self.optimizer = accelerator.prepare(StageLoss(model, params.softness), optimizer)
        self.language_model, self.scales = model.language_model, model.config.scales
        self.average = WeightAverage(learning, params.ema)
        self.guard = GradientGuard(params.max_skipped)

    def resume(self) -> tuple[int, dict[str, Any]]:
        """Go on from the newest intact checkpoint: steps done, and what was kept beside; (0, {}) for none."""
        chosen = [store.newest_step(self.checkpoints) if self.accelerator.is_main_process else None]
        [step] = broadcast_object_list(chosen)
        if step is None:
            return 0, {}
        tensors, state = store.load_step(self.checkpoints, step)
        trees = unflatten_state(tensors, state["trees"])
        with torch.no_grad():
            for parameter, value in zip(self.learning, trees["weights"], strict=True):
                parameter.copy_(value)
            for average, value in zip(self.average.averages, trees["averages"], strict=True):
                average.copy_(value)
        self.optimizer.load_state_dict(trees["optimizer"])
        return step, state["beside"]

    def save(self, step: int, beside: dict[str, Any]) -> bool:
        """Commit everything that `resume` needs; whether the disk has taken it.

        Raises NonFiniteError when a weight is not finite.
        """
        has_failed = False
        if self.accelerator.is_main_process:
            trees = {
                "weights": [parameter.detach() for parameter in self.learning],
                "averages": self.average.averages,
                "optimizer": self.optimizer.state_dict(),
            }
            tensors, tree = flatten_state(trees, "state")
            try:
                store.save_step(self.checkpoints, step, tensors, {"trees": tree, "beside": beside})
            except store.SaveError as error:
                logger.warning("%s", error)
                has_failed = True
        return not self._on_any(has_failed)

    def run(self, first: int, on_step: Callable[[StepReport], None], beside: Callable[[], dict]) -> None:
        """Learn from step `first` to the end, saving on the way.

        A full disk costs a checkpoint on the way, not the training.

        Raises:
            Stopped: asked to stop, and saved.
            SaveError: asked to stop, and what was learned since the last checkpoint could not be saved.
        """
        with eager_attention(self.language_model, self.accelerator.mixed_precision):
            for step in range(first, self.params.steps):
                if self._on_any(self.should_stop()):
                    if step > first and not self.save(step, beside()):
                        raise store.SaveError(f"stopped after {step} steps, which could not be saved")
                    raise Stopped(f"stopped after {step} of {self.params.steps} steps")
                on_step(self._learn(step))
                if (step + 1) % self.params.checkpoint_every == 0 and step + 1 < self.params.steps:
                    self.save(step + 1, beside())

    def _on_any(self, claim: bool) -> bool:
        """Whether it is so on any process; all processes must ask together."""
        return bool(self._over_all(torch.tensor(float(claim))) > 0)

    def _learn(self, step: int) -> StepReport:
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        rate = set_learning_rates(self.optimizer, step, self.params)
        torch.manual_seed((self.seed * 1_000_003 + step) * world + rank)
        parts = self.batches.micro_batches(step, rank, world)
        totals = self._over_all(sum(token_counts(part, self.scales) for part in parts))
        self.optimizer.zero_grad()
        shown = torch.stack([self._add_gradients(part, totals, part is parts[-1]) for part in parts]).sum(0)
        norm = float(self.accelerator.clip_grad_norm_(self.learning, self.clip_norm))
        # Where nothing is asked for, momentum and decay alone must not move weights.
        if self._weigh(totals) > 0 and self.guard.allows(step, norm, lambda: self.batches.record_names(step)):
            self.optimizer.step()
            self.average.update(step + 1)
        losses = _named(self._over_all(shown), totals)
        return StepReport(step, rate, losses, norm, int(totals.sum()), self.guard.num_skipped)

    def _add_gradients(self, part: dict[str, Tensor], totals: Tensor, is_last: bool) -> Tensor:
        """Sums of one micro-batch, whose gradients processes exchange after the last one only."""
        part = {name: value.to(self.accelerator.device) for name, value in part.items()}
        with contextlib.nullcontext() if is_last else self.accelerator.no_sync(self.loss):
            sums = self.loss(part)
            # Processes' gradients are averaged, so their number is put back.
            self.accelerator.backward(self._loss(sums, totals) * self.accelerator.num_processes)
        return sums.detach()

    def _over_all(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        values = values.to(self.accelerator.device)
        return values if self.accelerator.num_processes == 1 else self.accelerator.reduce(values)

    def _loss(self, sums: Tensor, totals: Tensor) -> Tensor:
        """The share of this micro-batch in the loss of the whole step."""
        text = sums[0] / totals[0].clamp(min=1)
        image = sums[1:].sum() / totals[1:].sum().clamp(min=1)
        return self.params.text_weight * text + self.params.image_weight * image

    def _weigh(self, totals: Tensor) -> float:
        """How much a step asks for: words and image tokens by the weight of their loss."""
        words, drawn = float(totals[0]), float(totals[1:].sum())
        return self.params.text_weight * words + self.params.image_weight * drawn


def _make_optimizer(
    model: nn.Module, params: StageParams, optimizer: OptimizerParams
) -> torch.optim.Optimizer:
    if params.muon_lr:
        return make_tiny_optimizer([model], params, optimizer)
    learning = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    return make_adamw(learning, params.lr, optimizer)


def _named(sums: Tensor, totals: Tensor) -> dict[str, float]:
    """Losses per part and per scale, of the parts that were there."""
    named = {"text": (sums[0], totals[0]), "image": (sums[1:].sum(), totals[1:].sum())}
    for scale, pair in enumerate(zip(sums[1:], totals[1:], strict=True)):
        named[f"image_scale_{scale + 1}"] = pair
    return {name: float(total / count) for name, (total, count) in named.items() if count > 0}
