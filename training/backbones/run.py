"""One run of the stage `backbones`: trains them, tracks, and publishes them as one model with its lineage."""

import dataclasses
import logging
import shutil
import time

from model.checkpoint import save_model
from training.backbones.build import make_backbones
from training.backbones.import_run import is_imported, run_import
from training.errors import Stopped
from training.params import BackboneParams, Params
from training.registry.stage_folders import StageFolders, tracked_params
from training.registry.trained_versions import track_trained
from training.run_context import RunContext
from training.tracking.progress import ProgressLine, ProgressLines, progress_lines
from training.tracking.tracker import EXPERIMENT, LOG_EVERY, Tracker, open_tracker

logger = logging.getLogger(__name__)


def run_backbones(params: Params, folders: StageFolders, context: RunContext) -> None:
    """Train all backbones and publish the model; resumes from the newest checkpoints of the same training.

    Where params.yaml names published weights, they are imported instead.

    Raises:
        UserError: data or parameters are wrong.
        OSError: a disk failed, also when it had to save for a stop, or a signal ended a worker process.
        Stopped: `context.should_stop` returned True, and everything so far is saved.
    """
    if is_imported(params.weights):
        run_import(params, folders, context)
        return
    lineage = folders.lineage(params, context.image)
    tracker = open_tracker(
        context.tracking_uri, EXPERIMENT, context.spool, is_rank_zero=True, exporter=context.exporter
    )
    began = time.monotonic()
    run_id = tracker.start("backbones", tracked_params(params, "backbones"), lineage.tags())
    tracker.dataset("digits", lineage.data_md5, str(folders.data_pointer.with_suffix("")))
    status = "FAILED"
    try:
        with progress_lines() as lines:
            model, processor = make_backbones(
                params,
                folders.prepared,
                folders.folder,
                StepLogger(tracker, lines, params.backbones),
                context.should_stop,
                identity=lineage.data_md5,
            )
        facts = {**dataclasses.asdict(lineage), "run_id": tracker.mlflow_run_id or run_id}
        weights_sha256 = folders.publish(lambda folder: save_model(model, processor, folder), facts)
        track_trained(tracker, folders.model_dir)
        status = "FINISHED"
    except Stopped:
        status = "KILLED"
        raise
    finally:
        tracker.finish(status)
    folders.point(weights_sha256, tracker.mlflow_run_id or run_id, time.monotonic() - began)
    # Fingerprints leave out the code: after a change of it, a later run must train anew.
    shutil.rmtree(folders.folder / "parts", ignore_errors=True)
    logger.info("backbones are done: %s", folders.model_dir)


class StepLogger:
    """Callback that shows every backbone in a progress line of its own and tracks its losses."""

    def __init__(self, tracker: Tracker, lines: ProgressLines, params: BackboneParams) -> None:
        self.tracker, self.lines, self.params = tracker, lines, params
        self.line_of: dict[str, ProgressLine] = {}

    def __call__(self, backbone: str, step: int, losses: dict[str, float]) -> None:
        if backbone not in self.line_of:
            steps = getattr(self.params, backbone).steps
            self.line_of[backbone] = self.lines.add(f"backbones {backbone}", step, steps)
        self.line_of[backbone].show(step + 1, losses)
        if (step + 1) % LOG_EVERY == 0:
            values = {f"{backbone}/{name}": value for name, value in losses.items()}
            self.tracker.log(step + 1, **values)
