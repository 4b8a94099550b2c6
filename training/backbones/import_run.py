"""One run of the stage `backbones` at a size whose weights are published: imports them, tracks, points to
them.
"""

import logging
import time
from pathlib import Path

from training.backbones.import_plan import ImportSources
from training.backbones.import_weights import ImportChoices, Imported, import_weights
from training.params import Params, WeightsParams
from training.registry.stage_folders import StageFolders
from training.registry.trained_versions import track_trained
from training.run_context import RunContext
from training.tracking.progress import ProgressLine, ProgressLines, progress_lines
from training.tracking.tracker import EXPERIMENT, open_tracker

logger = logging.getLogger(__name__)

STAGE = "backbones"
MEGABYTE = 1_000_000


def is_imported(weights: WeightsParams) -> bool:
    """Whether params.yaml names published weights, in place of backbones that are trained."""
    return any(value is not None for value in weights.model_dump().values())


def run_import(params: Params, folders: StageFolders, context: RunContext) -> Imported:
    """Import what params.yaml names as the model of the stage, in place of the one that is there.

    UserError when the weights are not there, do not fit, or are no whole model.
    """
    sources = ImportSources(
        **{name: path and Path(path) for name, path in params.weights.model_dump().items()}
    )
    choices = ImportChoices(preset=params.preset, seed=params.seed)
    tracker = open_tracker(context.tracking_uri, EXPERIMENT, context.spool, is_rank_zero=True)
    began = time.monotonic()
    recorded = {"stage": STAGE, "preset": choices.preset, "dtype": choices.dtype, "seed": choices.seed}
    run_id = tracker.start(STAGE, recorded | {name: str(path) for name, path in sources.paths.items()}, {})
    status = "FAILED"
    try:
        with progress_lines() as lines:
            imported = import_weights(
                sources,
                folders.model_dir,
                choices,
                must_be_whole=True,
                is_replaced=True,
                on_progress=ImportProgress(lines),
                image=context.image,
                run_id=run_id,
            )
        track_trained(tracker, folders.model_dir)
        status = "FINISHED"
    finally:
        tracker.finish(status)
    folders.point(imported.weights_sha256, tracker.mlflow_run_id or run_id, time.monotonic() - began)
    logger.info("backbones are imported: %s\n%s", folders.model_dir, imported.report.summary())
    return imported


class ImportProgress:
    """Shows every part of an import in a progress line of its own."""

    def __init__(self, lines: ProgressLines) -> None:
        self._lines = lines
        self._line_of: dict[str, ProgressLine] = {}

    def __call__(self, title: str, done: int, total: int) -> None:
        if title not in self._line_of:
            self._line_of[title] = self._lines.add(title, 0, total // MEGABYTE, unit="MB")
        self._line_of[title].show(done // MEGABYTE, {})
