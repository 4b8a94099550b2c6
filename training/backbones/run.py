"""The stage before the first: makes what a real run downloads, tracks it and publishes it as one model."""

import dataclasses
import logging
import shutil
import time

from training.backbones.build import make_backbones
from training.errors import Stopped
from training.params import Params
from training.registry.stage_folders import StageFolders, tracked_params
from training.run_context import RunContext
from training.tracking.tracker import EXPERIMENT, LOG_EVERY, Tracker, open_tracker

logger = logging.getLogger(__name__)

LOG_SECONDS = 5.0


def run_backbones(params: Params, place: StageFolders, setting: RunContext) -> None:
    """Train the parts, publish the model. ValueError for what the user must mend; Stopped after saving."""
    lineage = place.lineage(params, setting.commit)
    tracker = open_tracker(setting.tracking_uri, EXPERIMENT, setting.spool, is_rank_zero=True)
    began = time.monotonic()
    run_id = tracker.start("backbones", tracked_params(params, "backbones"), lineage.tags())
    tracker.dataset("digits", lineage.data_md5, str(place.data_pointer.with_suffix("")))
    status = "FAILED"
    try:
        report = Report(tracker)
        model, processor = make_backbones(
            params, place.prepared, place.folder, report, setting.should_stop, identity=lineage.data_md5
        )
        facts = {**dataclasses.asdict(lineage), "run_id": tracker.mlflow_run_id or run_id}
        weights = place.publish(model, processor, facts)
        tracker.tag(**{"vargpt.weights_sha256": weights})
        status = "FINISHED"
    except Stopped:
        status = "KILLED"
        raise
    finally:
        tracker.finish(status)
    place.point(weights, tracker.mlflow_run_id or run_id, time.monotonic() - began)
    # They are known by parameters and data, not by the code that made them: a later run starts anew.
    shutil.rmtree(place.folder / "parts", ignore_errors=True)
    logger.info("backbones are done: %s", place.model_dir)


class Report:
    """Tells tracker and log what the parts report."""

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker
        self.logged: dict[str, float] = {}

    def __call__(self, part: str, step: int, losses: dict[str, float]) -> None:
        if (step + 1) % LOG_EVERY == 0:
            self.tracker.log(step + 1, **{f"{part}/{name}": value for name, value in losses.items()})
        if time.monotonic() - self.logged.get(part, -LOG_SECONDS) >= LOG_SECONDS:
            self.logged[part] = time.monotonic()
            text = " ".join(f"{name} {value:.3f}" for name, value in losses.items())
            logger.info("%s step %d %s", part, step + 1, text)
