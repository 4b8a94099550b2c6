"""One run of a stage: opens its data, trains, tracks, and publishes the model with its lineage."""

import dataclasses
import json
import logging
import shutil
import time
from typing import Any

import torch

from model.processing import VargptProcessor
from training.checkpoints import step_folders
from training.data.bad_records import BadRecordLog
from training.data.batch_loader import BatchLoader
from training.data.code_cache import open_codes
from training.data.content_hashes import samples_sha256
from training.data.prepared_data import DataFolders, open_mixture
from training.digits.instructions import sample_prompts
from training.engines.make import make_engine
from training.errors import Stopped
from training.params import Params
from training.planning.dry_run import check_batch, check_options, check_packages
from training.registry.stage_folders import StageFolders, tracked_params
from training.registry.trained_versions import track_trained
from training.run_context import RunContext
from training.stages.stage_table import Stage, freeze_for, stage_named
from training.stages.step_metrics import StepMetrics
from training.stages.throughput import Throughput, peak_memory
from training.stages.trainer import Trainer
from training.stages.work_record import WorkRecorder
from training.tracking.progress import ProgressLine, progress_line
from training.tracking.sample_sheet import sample_sheet
from training.tracking.tracker import EXPERIMENT, LOG_EVERY, Tracker, open_tracker

logger = logging.getLogger(__name__)

# With these, MLflow knows enough of a run to repeat it.
PARAMS_ARTIFACT, PROCESSES_TAG, DEEPSPEED_TAG = "params.json", "vargpt.processes", "vargpt.deepspeed"
# Checkpoints are told by their address, and not uploaded.
CHECKPOINTS_TAG = "vargpt.checkpoints"


def run_stage(name: str, params: Params, folders: StageFolders, context: RunContext) -> None:
    """Train one stage and publish its model; resumes from the newest checkpoint of the same training.

    Raises:
        UserError: names what is wrong with data, parameters or the model that the stage starts from.
        Stopped: `context.should_stop` returned True, and everything so far is saved.
    """
    stage, stage_params = stage_named(name), getattr(params, name)
    bad_records = BadRecordLog()
    data = DataFolders(folders.prepared.parent, folders.outputs / "index")
    mixture = open_mixture(stage_params.mixture, data, params.data.held_out, params.seed, bad_records)
    bad_records.check(params.data.bad_record_share)
    model, processor = folders.load(stage.starts_from)
    check_options(name, stage_params, model.config)
    check_packages(name, stage_params)
    content = samples_sha256(mixture.datasets)
    identity = folders.identity(params, folders.start_sha256(stage.starts_from), content)
    codes = open_codes(folders.outputs / "codes", model.image_tokenizer, processor, stage_params)
    if codes is not None:
        model.image_tokenizer.detach_encoder()
    # Most of the user's mistakes are found before this line, after which processes wait for each other.
    engine = make_engine(stage_params, params)
    # All processes refuse it, so that none waits for another.
    check_batch(name, stage_params.batch, engine.world_size)
    loader = BatchLoader(
        mixture,
        processor,
        model.config.image_tokenizer_config,
        stage_params,
        params.seed,
        bad_records,
        params.data.bad_record_share,
        codes,
    )
    torch.manual_seed(params.seed)
    trainer = Trainer(
        engine,
        model,
        freeze_for(model, stage, stage_params.lora),
        loader,
        stage_params,
        params,
        checkpoint_dir=folders.folder / identity,
        should_stop=context.should_stop,
    )
    run = StageRun(stage, params, folders, context, trainer, processor)
    if engine.is_main:
        bad_records.save(folders.folder / "bad_records.json")
    run.train_and_publish()


class StageRun:
    """One attempt to train a stage, and what all attempts share: MLflow run and training time."""

    def __init__(
        self,
        stage: Stage,
        params: Params,
        folders: StageFolders,
        context: RunContext,
        trainer: Trainer,
        processor: VargptProcessor,
    ) -> None:
        self.stage, self.params, self.folders, self.context = stage, params, folders, context
        self.trainer, self.engine, self.processor = trainer, trainer.engine, processor
        self.tracker: Tracker = open_tracker(
            context.tracking_uri,
            EXPERIMENT,
            context.spool,
            self.engine.is_main,
            exporter=context.exporter,
        )
        self.began, self.seconds_before, self.run_id = time.monotonic(), 0.0, ""
        self.num_spikes = 0
        self.throughput = Throughput(
            trainer.model.config, stage, trainer.params, self.engine.world_size, self.engine.device
        )
        self.lineage = folders.lineage(params, context.image, stage.starts_from)

    def train_and_publish(self) -> None:
        """Train from the newest checkpoint to the end, publish the model and delete the checkpoints."""
        self._warn_of_other_checkpoints()
        first, metadata = self.trainer.resume()
        self.seconds_before = metadata.get("seconds", 0.0)
        self._start_tracking(metadata.get("run"), first)
        status = "FAILED"
        try:
            with progress_line(self.stage.name, first, self._steps, self.engine.is_main) as line:
                self.trainer.run(first, lambda metrics: self._on_step(metrics, line), self._metadata)
            self.context.on_trained()
            self._publish()
            status = "FINISHED"
        except Stopped:
            status = "KILLED"
            raise
        finally:
            self.tracker.finish(status)
        # An elastic job has succeeded when its first worker has: no process ends before the pointer is there.
        self.engine.together(self._point, self.trainer.checkpoints.patience(0))
        if self.engine.is_main:
            self._delete_checkpoints()

    def _warn_of_other_checkpoints(self) -> None:
        """Log checkpoints of other parameters, for users who changed one by mistake."""
        if self.engine.is_main:
            others = {path.parent for path in self.folders.folder.glob("*/step_*")}
            others -= {self.trainer.checkpoints.folder}
            for folder in sorted(others):
                logger.warning("%s is of other parameters, data or start: not continued", folder)

    @property
    def _steps(self) -> int:
        return self.trainer.params.steps

    def _start_tracking(self, run_of_checkpoint: str | None, first: int) -> None:
        """Start an MLflow run, or continue the one of an earlier attempt, whose id is in a file."""
        run_file = self.folders.folder / f"{self.trainer.checkpoints.folder.name}.run.json"
        self.work = WorkRecorder(run_file)
        config = tracked_params(self.params, self.stage.name)
        self.run_id = self.tracker.start(
            self.stage.name, config, self.lineage.tags(), run_of_checkpoint or self.work.record.run or None
        )
        if self.engine.is_main:
            self.work.begin(self.run_id, first, self.seconds_before)
            self._track_lost_work(first)
            self._record_params()
        own = {
            PROCESSES_TAG: str(self.engine.world_size),
            CHECKPOINTS_TAG: self.trainer.checkpoints.folder.resolve().as_uri(),
        }
        self.tracker.tag(**own, **self.throughput.denominator())
        if self.engine.config:
            self.tracker.tag(**{DEEPSPEED_TAG: json.dumps(self.engine.config)})
        self.tracker.dataset("digits", self.lineage.data_md5, str(self.folders.data_pointer.with_suffix("")))

    def _record_params(self) -> None:
        """Keep all parameters with the run, from which `vargpt rerun` repeats it."""
        path = self.folders.folder / PARAMS_ARTIFACT
        path.write_text(self.params.model_dump_json(indent=1), encoding="utf-8")
        self.tracker.artifact(path)

    def _seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.began

    def _metadata(self) -> dict[str, Any]:
        return {"run": self.run_id, "seconds": self._seconds()}

    def _on_step(self, metrics: StepMetrics, line: ProgressLine) -> None:
        num_done, params = metrics.step + 1, self.trainer.params
        if self.engine.is_main:
            self.work.reached(num_done, self._seconds())
        line.show(num_done, {k: v for k, v in metrics.losses.items() if k in ("text", "image")})
        if num_done % LOG_EVERY == 0 or num_done == self._steps:
            rates = {
                "learning_rate": metrics.learning_rate,
                "gradient_norm": metrics.gradient_norm,
                "steps_per_second": num_done / max(self._seconds(), 1e-9),
                "tokens_per_step": metrics.num_tokens,
                "skipped_steps": metrics.num_skipped,
            }
            rates |= self._speed(metrics)
            by_group = {"loss": metrics.losses, "gradient_norm_of": metrics.norm_by_part}
            groups = {
                f"{group}/{name}": value for group, of in by_group.items() for name, value in of.items()
            }
            self.tracker.log(num_done, **rates, **groups)
            self.tracker.processes(metrics.compute_seconds)
            self._track_lost_work(num_done)
        if metrics.validation:
            validation = {f"validation/{name}": value for name, value in metrics.validation.items()}
            self.tracker.log(num_done, **validation)
        if metrics.is_spike:
            self.num_spikes += 1
            self.tracker.log(num_done, loss_spikes=self.num_spikes)
        if params.image_weight and num_done % params.checkpoint_every == 0:
            self._track_samples(num_done)

    def _speed(self, metrics: StepMetrics) -> dict[str, float]:
        """Of the last step, over all processes; memory and checkpoints of the main one."""
        checkpoints = self.trainer.checkpoints
        return (
            self.throughput.metrics(metrics)
            | peak_memory(self.engine.device)
            | {
                "checkpoint_stall_seconds": checkpoints.stall_seconds,
                "checkpoint_write_seconds": checkpoints.write_seconds,
            }
        )

    def _track_lost_work(self, step: int) -> None:
        self.tracker.log(step, **self.work.record.metrics(self.engine.world_size))

    def _track_samples(self, num_steps: int) -> None:
        """Draw the fixed prompts with averaged weights and log the images."""
        # Each process has a part of the averages; where they share weights, too, all of them compute.
        with self.trainer.averaged_weights():
            if self.engine.is_main or self.engine.shards_weights:
                sheet = sample_sheet(self.trainer.model, self.processor, sample_prompts())
                self.tracker.image(num_steps, "samples", sheet)

    def _publish(self) -> None:
        """Write the model with averaged weights to the stage's folder, on the main process."""
        if self.trainer.params.image_weight:
            self._track_samples(self._steps)
        self.trainer.save_last(self._metadata())
        start = self.folders.model_of(self.stage.starts_from)
        patience = self.trainer.checkpoints.patience(step_folders.num_bytes(start))
        self.engine.together(self._write_model, patience)

    def _write_model(self) -> None:
        if not self.engine.is_main:
            return
        start = self.folders.model_of(self.stage.starts_from)
        lineage = dataclasses.asdict(self.lineage) | {"run_id": self._tracked_run_id()}
        self.weights_sha256 = self.folders.publish(
            lambda folder: self.trainer.write_model(start, folder), lineage
        )
        self.trainer.write_adapters(self.folders.folder / "adapter")
        track_trained(self.tracker, self.folders.model_dir)

    def _tracked_run_id(self) -> str:
        """MLflow's id of the run, or ours where MLflow was out of reach."""
        return self.tracker.mlflow_run_id or self.run_id

    def _point(self) -> None:
        """Write the pointer that says that the stage is done, on the main process."""
        if self.engine.is_main:
            self.folders.point(self.weights_sha256, self._tracked_run_id(), self._seconds())

    def _delete_checkpoints(self) -> None:
        """Delete all checkpoints of the stage."""
        for run_file in self.folders.folder.glob("*.run.json"):
            shutil.rmtree(run_file.with_name(run_file.name.removesuffix(".run.json")), ignore_errors=True)
            run_file.unlink()
        logger.info("%s is done: %s", self.stage.name, self.folders.model_dir)
