"""One stage from start to published model: data, loop, tracking and lineage joined."""

import dataclasses
import json
import logging
import shutil
import time
from typing import Any

from accelerate import Accelerator

from model.modeling import VargptForConditionalGeneration
from model.processing import VargptProcessor
from training.data.bad_records import BadRecordLog
from training.data.batches import Batches, open_mixture
from training.digits.instructions import sample_prompts
from training.errors import Stopped
from training.params import Params
from training.registry.stage_folders import StageFolders, tracked_params
from training.run_context import RunContext
from training.stages.stage_table import Stage, freeze_for, stage_named
from training.stages.trainer import StepReport, Trainer, make_accelerator
from training.tracking.progress import ProgressLine, progress_line
from training.tracking.sample_sheet import sample_sheet
from training.tracking.tracker import EXPERIMENT, LOG_EVERY, Tracker, open_tracker

logger = logging.getLogger(__name__)


def run_stage(name: str, params: Params, place: StageFolders, setting: RunContext) -> None:
    """Train one stage and publish it. ValueError for what the user must mend; Stopped after saving."""
    stage, stage_params = stage_named(name), getattr(params, name)
    bad_records = BadRecordLog()
    mixture = open_mixture(place.prepared, stage_params.mixture, params.seed, bad_records)
    bad_records.check(params.prepare.bad_record_share)
    model, processor = place.load(stage.starts_from)
    identity = place.identity(params, place.start_sha256(stage.starts_from))
    # All that a user can cause has been said; from here on processes depend on each other.
    accelerator = make_accelerator(params.precision)
    model.to(accelerator.device)
    trainer = Trainer(
        accelerator,
        model,
        freeze_for(model, stage),
        Batches(mixture, processor, model.config.image_tokenizer_config, stage_params, params.seed),
        stage_params,
        params.optimizer,
        params.seed,
        place.folder / identity,
        setting.should_stop,
    )
    run = StageRun(stage, params, place, setting, accelerator, trainer, model, processor)
    if accelerator.is_main_process:
        bad_records.save(place.folder / "bad_records.json")
    run.train()


class StageRun:
    """A stage while it runs: its tracker, and how long it has learned over all attempts."""

    def __init__(
        self,
        stage: Stage,
        params: Params,
        place: StageFolders,
        setting: RunContext,
        accelerator: Accelerator,
        trainer: Trainer,
        model: VargptForConditionalGeneration,
        processor: VargptProcessor,
    ) -> None:
        self.stage, self.params, self.place, self.setting = stage, params, place, setting
        self.accelerator, self.trainer, self.model, self.processor = accelerator, trainer, model, processor
        self.tracker: Tracker = open_tracker(
            setting.tracking_uri, EXPERIMENT, setting.spool, accelerator.is_main_process
        )
        self.began, self.seconds_before, self.run_id = time.monotonic(), 0.0, ""
        self.lineage = place.lineage(params, setting.commit, stage.starts_from)

    def train(self) -> None:
        """Go on from the newest checkpoint to the end, and publish."""
        first, beside = self.trainer.resume()
        self.seconds_before = beside.get("seconds", 0.0)
        self._start_run(beside)
        status = "FAILED"
        try:
            with progress_line(self.stage.name, first, self._steps, self.accelerator.is_main_process) as line:
                self.trainer.run(first, lambda report: self._on_step(report, line), self._beside)
            self._publish()
            status = "FINISHED"
        except Stopped:
            status = "KILLED"
            raise
        finally:
            self.tracker.finish(status)
        if self.accelerator.is_main_process:
            self._point()
        self.accelerator.wait_for_everyone()

    @property
    def _steps(self) -> int:
        return self.trainer.params.steps

    def _start_run(self, beside: dict[str, Any]) -> None:
        """One run over all attempts: its name lies in a file from the first attempt on."""
        note = self.place.folder / f"{self.trainer.checkpoints.name}.run.json"
        known = json.loads(note.read_text())["run"] if note.is_file() else None
        config = tracked_params(self.params, self.stage.name)
        self.run_id = self.tracker.start(
            self.stage.name, config, self.lineage.tags(), beside.get("run") or known
        )
        if self.accelerator.is_main_process:
            note.parent.mkdir(parents=True, exist_ok=True)
            note.write_text(json.dumps({"run": self.run_id}))
        self.tracker.dataset("digits", self.lineage.data_md5, str(self.place.data_pointer.with_suffix("")))

    def _seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.began

    def _beside(self) -> dict[str, Any]:
        return {"run": self.run_id, "seconds": self._seconds()}

    def _on_step(self, report: StepReport, line: ProgressLine) -> None:
        line.show(report.step + 1, {k: v for k, v in report.losses.items() if k in ("text", "image")})
        done, params = report.step + 1, self.trainer.params
        if done % LOG_EVERY == 0 or done == self._steps:
            rates = {
                "learning_rate": report.learning_rate,
                "gradient_norm": report.gradient_norm,
                "steps_per_second": done / max(self._seconds(), 1e-9),
                "tokens_per_step": report.num_tokens,
            }
            losses = {f"loss/{name}": value for name, value in report.losses.items()}
            self.tracker.log(done, **rates, **losses)
        if params.image_weight and done % params.checkpoint_every == 0 and self.accelerator.is_main_process:
            with self.trainer.average.in_place():
                self.tracker.image(
                    done, "samples", sample_sheet(self.model, self.processor, sample_prompts())
                )

    def _publish(self) -> None:
        self.trainer.average.keep()
        if not self.accelerator.is_main_process:
            return
        if self.trainer.params.image_weight:
            self.tracker.image(
                self._steps, "samples", sample_sheet(self.model, self.processor, sample_prompts())
            )
        facts = dataclasses.asdict(self.lineage)
        self.weights = self.place.publish(self.model, self.processor, {**facts, "run_id": self._known_id()})
        self.tracker.tag(**{"vargpt.weights_sha256": self.weights})

    def _known_id(self) -> str:
        """MLflow's own id of the run, or ours where MLflow was out of reach."""
        return self.tracker.mlflow_run_id or self.run_id

    def _point(self) -> None:
        """The pointer says that the stage is done; its checkpoints have served."""
        self.place.point(self.weights, self._known_id(), self._seconds())
        for stale in self.place.folder.glob("*.run.json"):
            shutil.rmtree(stale.with_name(stale.name.removesuffix(".run.json")), ignore_errors=True)
            stale.unlink()
        logger.info("%s is done: %s", self.stage.name, self.place.model_dir)
