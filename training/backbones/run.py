"""The stage before the first: makes what a real run downloads, tracks it and publishes it as one model."""

import dataclasses
import logging
import shutil
import time

from training.backbones.build import make_backbones
from training.errors import Stopped
from training.params import BackboneParams, Params
from training.registry.stage_folders import StageFolders, config_of
from training.run_context import RunContext
from training.tracking.progress import ProgressLine, ProgressLines, progress_lines
from training.tracking.tracker import EXPERIMENT, LOG_EVERY, Tracker, open_tracker

logger = logging.getLogger(__name__)


def run_backbones(params: Params, folders: StageFolders, context: RunContext) -> None:
    """Train the parts, publish the model. UserError for what the user must mend; Stopped after saving."""
    lineage = folders.lineage(params, context.commit)
    tracker = open_tracker(context.tracking_uri, EXPERIMENT, context.spool, is_rank_zero=True)
    began = time.monotonic()
    run_id = tracker.start("backbones", config_of(params, "backbones"), lineage.tags())
    tracker.dataset("digits", lineage.data_md5, str(folders.data_pointer.with_suffix("")))
    status = "FAILED"
    try:
        with progress_lines() as lines:
            model, processor = make_backbones(
                params,
                folders.prepared,
                folders.folder,
                Report(tracker, lines, params.backbones),
                context.should_stop,
                identity=lineage.data_md5,
            )
        facts = {**dataclasses.asdict(lineage), "run_id": tracker.mlflow_run_id or run_id}
        weights = folders.publish(model, processor, facts)
        tracker.tag(**{"vargpt.weights_sha256": weights})
        status = "FINISHED"
    except Stopped:
        status = "KILLED"
        raise
    finally:
        tracker.finish(status)
    folders.point(weights, tracker.mlflow_run_id or run_id, time.monotonic() - began)
    # They are known by parameters and data, not by the code that made them: a later run starts anew.
    shutil.rmtree(folders.folder / "parts", ignore_errors=True)
    logger.info("backbones are done: %s", folders.model_dir)


class Report:
    """Tells tracker and progress lines what the parts report, each part in a line of its own."""

    def __init__(self, tracker: Tracker, lines: ProgressLines, params: BackboneParams) -> None:
        self.tracker, self.lines, self.params = tracker, lines, params
        self.by_part: dict[str, ProgressLine] = {}

    def __call__(self, part: str, step: int, losses: dict[str, float]) -> None:
        if part not in self.by_part:
            self.by_part[part] = self.lines.add(f"backbones {part}", step, getattr(self.params, part).steps)
        self.by_part[part].show(step + 1, losses)
        if (step + 1) % LOG_EVERY == 0:
            self.tracker.log(step + 1, **{f"{part}/{name}": value for name, value in losses.items()})
