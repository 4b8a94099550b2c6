"""Training loop of every stage, under any engine; a stopped run resumes at the step where it was.

Losses are divided by the token counts of all processes together, so the same samples give the same gradient
whatever the number of processes. The exceptions are the two random layers, drop path (off in `tiny`) and the
dropout of LoRA's adapters (off where `lora.dropout` is 0), whose random numbers differ by process.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.fused_kernels import fuse_norms
from model.modeling import VargptForConditionalGeneration
from model.training_attention import training_attention
from training.checkpoints import step_folders
from training.checkpoints.fragments import Fragments
from training.checkpoints.slices import Flats, views
from training.data.batch_loader import BatchLoader
from training.engines.engine import Engine, NamedParameters
from training.errors import Stopped
from training.optimization.non_finite_gradients import NonFiniteGradientSkipper
from training.optimization.optimizer import make_adamw
from training.optimization.schedule import set_learning_rates
from training.optimization.weight_average import WeightAverage
from training.params import Params, StageParams
from training.stages.blocks import prepare_blocks
from training.stages.checkpointing import StageCheckpoints
from training.stages.compute_time import ComputeTime
from training.stages.lora import save_adapters
from training.stages.stage_loss import StageLoss, counted, mean_losses, on_device
from training.stages.step_metrics import SpikeDetector, StepMetrics
from training.stages.trained_model import write_trained_model
from training.stages.validation import Validation
from training.tiny.muon import make_tiny_optimizer
from training.tracking.tracker import LOG_EVERY

logger = logging.getLogger(__name__)

# Kinds of state in checkpoints: weights, and their average; others are the optimizer's.
WEIGHT, AVERAGE = "weight", "average"


class Trainer:
    """Trains one stage: loss, optimizer, weight average and checkpoints.

    Args:
        learning: Name and parameter of all that learns, in a fixed order.
        checkpoint_dir: Folder of this run's checkpoints.
        should_stop: Called before every step on every process; one that returns True stops all.
    """

    def __init__(
        self,
        engine: Engine,
        model: VargptForConditionalGeneration,
        learning: NamedParameters,
        loader: BatchLoader,
        stage: StageParams,
        params: Params,
        checkpoint_dir: Path,
        should_stop: Callable[[], bool],
    ) -> None:
        self.engine, self.model, self.learning, self.loader = engine, model, learning, loader
        self.params, self.seed, self.precision = stage, params.seed, params.precision
        self.should_stop, self.num_updates = should_stop, 0
        _take_out(model, "image_tokenizer", engine.device)
        fuse_norms(model.language_model)
        prepare_blocks(model, stage)
        engine.prepare(
            StageLoss(model, stage, engine.needs_all_modules),
            learning,
            lambda named: _make_optimizer(model, named, stage, params),
        )
        self.average = WeightAverage(_present(engine.flats()[WEIGHT]), stage.ema) if stage.ema else None
        self._spikes, self._compute_time = SpikeDetector(), ComputeTime(engine)
        self._validation = Validation(engine, model, loader)
        self.skipper = NonFiniteGradientSkipper(stage.max_skipped)
        self.checkpoints = StageCheckpoints(engine, checkpoint_dir, stage.keep_checkpoints)

    def resume(self) -> tuple[int, dict[str, Any]]:
        """Load the newest intact checkpoint: its number of steps and its metadata, (0, {}) without one."""
        found = self.checkpoints.newest()
        if found is None:
            return 0, {}
        fragments, step, state = found
        self.num_updates = state["num_updates"]
        self.engine.begin_states(
            lambda name: sorted(fragments.kinds[name] - {WEIGHT, AVERAGE}), self.num_updates
        )
        path = step_folders.step_path(self.checkpoints.folder, step)
        patience = self.checkpoints.patience(step_folders.num_bytes(path))
        self.engine.together(lambda: self._fill(fragments), patience)
        self.engine.apply_weights()
        return step, state["metadata"]

    def save(self, step: int, metadata: dict[str, Any], wait: bool = True) -> bool:
        """Write a checkpoint after `step` steps, with metadata for JSON. False when a disk did not take it.

        Args:
            wait: Return when it is written; otherwise training goes on meanwhile.

        Raises NonFiniteError when a weight is not finite.
        """
        state = {"num_updates": self.num_updates, "metadata": metadata}
        self.checkpoints.save(step, self._state(), state)
        return not (wait and self.checkpoints.finish())

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
        with training_attention(self.model.language_model, self.precision, self.params.compile):
            for step in range(first, self.params.steps):
                if self._exchange_flags():
                    if step > first and not self.save(step, metadata()):
                        raise step_folders.SaveError(f"stopped after {step} steps, which could not be saved")
                    raise Stopped(f"stopped after {step} of {self.params.steps} steps")
                on_step(self._train_step(step))
                if (step + 1) % self.params.checkpoint_every == 0 and step + 1 < self.params.steps:
                    self.save(step + 1, metadata(), wait=False)
        self.checkpoints.finish()

    def save_last(self, metadata: dict[str, Any]) -> None:
        """Write the checkpoint that the model is made from. SaveError when a disk did not take it."""
        if not self.save(self.params.steps, metadata):
            raise step_folders.SaveError(f"the last of {self.params.steps} steps could not be saved")

    def write_model(self, start: Path, folder: Path) -> str:
        """Write the trained model, by one process, from the checkpoint of `save_last`; its manifest's
        SHA-256.
        """
        return write_trained_model(start, self._last(), self._published, folder, self.params.lora)

    def write_adapters(self, folder: Path) -> None:
        """Write the adapters of a stage with LoRA, by one process, from the checkpoint of `save_last`."""
        if self.params.lora is not None:
            save_adapters(self.model, self._last(), self._published, self.params.lora, folder)

    def _last(self) -> Fragments:
        return Fragments(step_folders.step_path(self.checkpoints.folder, self.params.steps))

    @property
    def _published(self) -> str:
        return AVERAGE if self.average else WEIGHT

    @contextlib.contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Compute with the average of weights within the block, and with their own values after it."""
        if self.average is None:
            yield
            return
        with self.average.applied():
            self.engine.apply_weights()
            yield
        self.engine.apply_weights()

    def _exchange_flags(self) -> bool:
        """Tell all processes which asked to stop, and how far their checkpoint is; whether to stop."""
        flags = torch.tensor([float(flag) for flag in (self.should_stop(), *self.checkpoints.status())])
        num_stopping, num_written, num_failed = self.engine.total(flags).tolist()
        self.checkpoints.settle(int(num_written), int(num_failed))
        return num_stopping > 0

    def _train_step(self, step: int) -> StepMetrics:
        engine, began, is_recorded = self.engine, time.monotonic(), (step + 1) % LOG_EVERY == 0
        rate = set_learning_rates(engine.param_groups, step, self.params)
        torch.manual_seed((self.seed * 1_000_003 + step) * engine.world_size + engine.rank)
        batches = self.loader.micro_batches(step, engine.rank, engine.world_size)
        data_seconds = time.monotonic() - began
        count = counted(engine, batches, self.model.config.scales)
        counts = count.targets
        if not self._weighted_count(counts):
            # Without target tokens, momentum and weight decay alone must not move weights.
            return StepMetrics(step, rate, {}, 0.0, 0, self.skipper.num_skipped)
        self._compute_time.begin(is_recorded)
        sums = sum(self._add_gradient(batch, counts, batch is batches[-1]) for batch in batches)
        norms = engine.update(by_part=is_recorded)
        if not self.skipper.should_skip(step, norms.total, lambda: self.loader.record_names(step)):
            self.num_updates += 1
            if self.average is not None:
                self.average.update(step + 1)
        sums, every = engine.total(sums), self.params.validate_every
        return StepMetrics(
            step,
            rate,
            mean_losses(sums, counts),
            norms.total,
            int(counts.sum()),
            self.skipper.num_skipped,
            norm_by_part=norms.by_part,
            seconds=time.monotonic() - began,
            data_seconds=data_seconds,
            compute_seconds=self._compute_time.by_rank(),
            count=count,
            validation=self._validation.losses() if every and (step + 1) % every == 0 else {},
            is_spike=self._is_spike(step, float(self._weighted_loss(sums, counts))),
        )

    def _is_spike(self, step: int, loss: float) -> bool:
        if not self._spikes.is_spike(loss):
            return False
        if self.engine.is_main:
            records = ", ".join(self.loader.record_names(step))
            logger.warning("the loss of step %d, %.3g, is a spike; its records: %s", step, loss, records)
        return True

    def _add_gradient(self, batch: dict[str, Tensor], counts: Tensor, is_last: bool) -> Tensor:
        """Forward and backward pass of one micro-batch; its loss sums."""
        with self._compute_time.forward():
            sums = self.engine.forward(on_device(batch, self.engine.device), is_last)
        self.engine.backward(self._weighted_loss(sums, counts), is_last)
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

    def _state(self) -> Flats:
        """What this process holds of all that a checkpoint keeps."""
        flats = dict(self.engine.flats())
        if self.average is not None:
            flats[AVERAGE] = self.average.averages
        return flats

    @torch.no_grad()
    def _fill(self, fragments: Fragments) -> None:
        for kind, part, elements in views(self.engine.slices(), self._state()):
            # A state that none of a flat tensor's other parameters has stays zero.
            if kind in fragments.kinds[part.name]:
                fragments.read(kind, part, elements)


def _take_out(model: nn.Module, name: str, device: torch.device) -> None:
    """Keep a frozen module where the model finds it, but no longer as a part, so that an engine neither
    rounds nor shards its weights.
    """
    module = getattr(model, name)
    delattr(model, name)
    vars(model)[name] = module.to(device)


def _make_optimizer(
    model: nn.Module, named: NamedParameters, stage: StageParams, params: Params
) -> torch.optim.Optimizer:
    if stage.muon_lr:
        return make_tiny_optimizer([model], stage, params.optimizer)
    return make_adamw(named, stage.lr, params.optimizer)


def _present(weights: Sequence[Tensor | None]) -> list[Tensor]:
    return [weight for weight in weights if weight is not None]
