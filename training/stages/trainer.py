"""Training loop of every stage, on one process or many; a stopped run resumes at the step where it was.

Losses are divided by the token counts of all processes together, so the same samples give the same gradient
whatever the number of processes. The exception is drop path, the one random layer (off in `tiny`), whose
random numbers differ by process.
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
from model.losses import token_counts
from model.modeling import VargptForConditionalGeneration
from training.checkpoints import store
from training.checkpoints.state_trees import flatten_state, unflatten_state
from training.data.batch_loader import BatchLoader
from training.errors import Stopped
from training.optimization.non_finite_gradients import NonFiniteGradientSkipper
from training.optimization.optimizer import make_adamw
from training.optimization.schedule import set_learning_rates
from training.optimization.weight_average import WeightAverage
from training.params import OptimizerParams, StageParams
from training.precision import training_device
from training.tiny.muon import make_tiny_optimizer

logger = logging.getLogger(__name__)

# A peer that is gone is noticed after this long; it must exceed the time that a checkpoint takes.
COLLECTIVE_TIMEOUT_SECONDS = 120


def make_accelerator(precision: str) -> Accelerator:
    """Accelerate's view of the processes that torchrun or an operator started; on GPUs if there are any."""
    return Accelerator(
        cpu=training_device().type == "cpu",
        mixed_precision=precision,
        kwargs_handlers=[
            # A step without images leaves some projector without a gradient.
            DistributedDataParallelKwargs(find_unused_parameters=True),
            InitProcessGroupKwargs(timeout=timedelta(seconds=COLLECTIVE_TIMEOUT_SECONDS)),
        ],
    )


class StageLoss(nn.Module):
    """Cross-entropy of a batch in nats, summed over text tokens and over each image scale, (1 + scales,)."""

    def __init__(self, model: VargptForConditionalGeneration, softness: float) -> None:
        super().__init__()
        self.model, self.softness = model, softness

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        sums = self.model.loss_sums(**batch, softness=self.softness)
        joined = torch.cat([sums.text.reshape(1), sums.image_by_scale])
        if joined.requires_grad:
            return joined
        # No trainable parameter was used, as for text alone in stage 3. Gradients are zero, not missing, so
        # that all processes exchange the same ones.
        return joined + 0 * sum(p.sum() for p in self.parameters() if p.requires_grad)


@dataclass(frozen=True)
class StepMetrics:
    """Metrics of one training step over all processes.

    Args:
        step: Counted from 0.
        losses: Mean cross-entropy in nats per token, of text, image and each image scale that there was.
        gradient_norm: Before clipping.
        num_tokens: Target tokens of text and images.
        num_skipped: Steps of this run so far that were skipped, as their gradient was not finite.
    """

    step: int
    learning_rate: float
    losses: dict[str, float]
    gradient_norm: float
    num_tokens: int
    num_skipped: int


class Trainer:
    """Trains one stage: loss, optimizer, weight average and checkpoints.

    Args:
        trainable: The parameters that learn, in a fixed order.
        checkpoint_dir: Folder of this run's checkpoints.
        should_stop: Called before every step on every process; one that returns True stops all.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: VargptForConditionalGeneration,
        trainable: list[nn.Parameter],
        loader: BatchLoader,
        params: StageParams,
        optimizer_params: OptimizerParams,
        seed: int,
        checkpoint_dir: Path,
        should_stop: Callable[[], bool],
    ) -> None:
        self.accelerator, self.params, self.loader, self.seed = accelerator, params, loader, seed
        self.trainable, self.checkpoint_dir, self.should_stop = trainable, checkpoint_dir, should_stop
        self.clip_norm = optimizer_params.clip_norm
        optimizer = _make_optimizer(model, params, optimizer_params)
        self.loss, self.optimizer = accelerator.prepare(StageLoss(model, params.softness), optimizer)
        self.language_model, self.scales = model.language_model, model.config.scales
        self.average = WeightAverage(trainable, params.ema)
        self.skipper = NonFiniteGradientSkipper(params.max_skipped)

    def resume(self) -> tuple[int, dict[str, Any]]:
        """Load the newest intact checkpoint: its number of steps and its metadata, (0, {}) without one."""
        chosen = [store.newest_step(self.checkpoint_dir) if self.accelerator.is_main_process else None]
        [step] = broadcast_object_list(chosen)
        if step is None:
            return 0, {}
        tensors, state = store.load_step(self.checkpoint_dir, step)
        tree = unflatten_state(tensors, state["tree"])
        with torch.no_grad():
            for parameter, value in zip(self.trainable, tree["weights"], strict=True):
                parameter.copy_(value)
            for average, value in zip(self.average.averages, tree["averages"], strict=True):
                average.copy_(value)
        self.optimizer.load_state_dict(tree["optimizer"])
        return step, state["metadata"]

    def save(self, step: int, metadata: dict[str, Any]) -> bool:
        """Write a checkpoint after `step` steps, with metadata for JSON. False when the disk did not take it.

        Raises NonFiniteError when a weight is not finite.
        """
        has_failed = False
        if self.accelerator.is_main_process:
            state = {
                "weights": [parameter.detach() for parameter in self.trainable],
                "averages": self.average.averages,
                "optimizer": self.optimizer.state_dict(),
            }
            tensors, tree = flatten_state(state, "state")
            try:
                store.save_step(self.checkpoint_dir, step, tensors, {"tree": tree, "metadata": metadata})
            except store.SaveError as error:
                logger.warning("%s", error)
                has_failed = True
        return not self._on_any_process(has_failed)

    def run(
        self, first: int, on_step: Callable[[StepMetrics], None], metadata: Callable[[], dict[str, Any]]
    ) -> None:
        """Train from step `first` to the end, with a checkpoint every `params.checkpoint_every` steps.

        A checkpoint that the disk does not take is logged; training continues.

        Args:
            metadata: Returns what is saved with a checkpoint.

        Raises:
            Stopped: `should_stop` returned True, and everything so far is saved.
            SaveError: the same, but it could not be saved.
        """
        with eager_attention(self.language_model, self.accelerator.mixed_precision):
            for step in range(first, self.params.steps):
                if self._on_any_process(self.should_stop()):
                    if step > first and not self.save(step, metadata()):
                        raise store.SaveError(f"stopped after {step} steps, which could not be saved")
                    raise Stopped(f"stopped after {step} of {self.params.steps} steps")
                on_step(self._train_step(step))
                if (step + 1) % self.params.checkpoint_every == 0 and step + 1 < self.params.steps:
                    self.save(step + 1, metadata())

    def _train_step(self, step: int) -> StepMetrics:
        rank, world_size = self.accelerator.process_index, self.accelerator.num_processes
        rate = set_learning_rates(self.optimizer, step, self.params)
        torch.manual_seed((self.seed * 1_000_003 + step) * world_size + rank)
        batches = self.loader.micro_batches(step, rank, world_size)
        counts = self._sum_over_processes(sum(token_counts(batch, self.scales) for batch in batches))
        self.optimizer.zero_grad()
        sums = torch.stack(
            [self._accumulate_gradients(batch, counts, batch is batches[-1]) for batch in batches]
        ).sum(0)
        norm = float(self.accelerator.clip_grad_norm_(self.trainable, self.clip_norm))
        # In a step without target tokens, momentum and weight decay alone must not move weights.
        if self._weighted_count(counts) > 0 and not self.skipper.should_skip(
            step, norm, lambda: self.loader.record_names(step)
        ):
            self.optimizer.step()
            self.average.update(step + 1)
        losses = _mean_losses(self._sum_over_processes(sums), counts)
        return StepMetrics(step, rate, losses, norm, int(counts.sum()), self.skipper.num_skipped)

    def _accumulate_gradients(self, batch: dict[str, Tensor], counts: Tensor, is_last: bool) -> Tensor:
        """Backward pass of one micro-batch, all-reduced after the last one only. Returns its loss sums."""
        batch = {name: value.to(self.accelerator.device) for name, value in batch.items()}
        with contextlib.nullcontext() if is_last else self.accelerator.no_sync(self.loss):
            sums = self.loss(batch)
            # DDP averages over processes; the counts are of all of them, so the sum is needed.
            self.accelerator.backward(self._weighted_loss(sums, counts) * self.accelerator.num_processes)
        return sums.detach()

    def _weighted_loss(self, sums: Tensor, counts: Tensor) -> Tensor:
        """This micro-batch's share of the loss of the step."""
        text = sums[0] / counts[0].clamp(min=1)
        image = sums[1:].sum() / counts[1:].sum().clamp(min=1)
        return self.params.text_weight * text + self.params.image_weight * image

    def _weighted_count(self, counts: Tensor) -> float:
        """Target tokens, weighted as their losses are; 0 when there is nothing to learn from."""
        num_text, num_image = float(counts[0]), float(counts[1:].sum())
        return self.params.text_weight * num_text + self.params.image_weight * num_image

    def _on_any_process(self, flag: bool) -> bool:
        """Whether the flag is set on any process; all of them must call it."""
        return bool(self._sum_over_processes(torch.tensor(float(flag))) > 0)

    def _sum_over_processes(self, values: Tensor) -> Tensor:
        values = values.to(self.accelerator.device)
        return values if self.accelerator.num_processes == 1 else self.accelerator.reduce(values)


def _make_optimizer(
    model: nn.Module, params: StageParams, optimizer_params: OptimizerParams
) -> torch.optim.Optimizer:
    if params.muon_lr:
        return make_tiny_optimizer([model], params, optimizer_params)
    trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    return make_adamw(trainable, params.lr, optimizer_params)


def _mean_losses(sums: Tensor, counts: Tensor) -> dict[str, float]:
    """Mean losses of text, image and each image scale, where there were target tokens."""
    by_name = {"text": (sums[0], counts[0]), "image": (sums[1:].sum(), counts[1:].sum())}
    for scale, pair in enumerate(zip(sums[1:], counts[1:], strict=True)):
        by_name[f"image_scale_{scale + 1}"] = pair
    return {name: float(total / count) for name, (total, count) in by_name.items() if count > 0}
