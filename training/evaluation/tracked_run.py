"""Records an evaluation as a run of its own in MLflow, beside the runs of the stages."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.registry.evaluation_subject import SUBJECT
from training.registry.gates import numbers
from training.registry.lineage import read_lineage
from training.tracking.mlflow_run import STAGE_TAG
from training.tracking.tracker import EXPERIMENT, open_tracker

EVALUATE = "evaluate"


def track_evaluation(
    address: str,
    model_dir: Path,
    metrics: Mapping[str, Any],
    plots_dir: Path,
    tracking_uri: str,
    spool: Path,
) -> None:
    """Record figures and plots with the lineage of the model that they are of.

    Args:
        address: What the model was called by: a folder, or models:/...
    """
    lineage = read_lineage(model_dir)
    tracker = open_tracker(tracking_uri, EXPERIMENT, spool, is_rank_zero=True)
    params = {"stage": EVALUATE, "model": address, **metrics[SUBJECT]}
    # The record says which stage made the model; the run's own stage is another.
    tracker.start(EVALUATE, params, {**lineage.tags(), STAGE_TAG: EVALUATE})
    scores = {name: value for name, value in metrics.items() if name != SUBJECT}
    figures = {f"eval/{name.replace('.', '/')}": value for name, value in numbers(scores).items()}
    tracker.log(0, **figures)
    tracker.artifact(plots_dir)
    tracker.dataset("digits", metrics[SUBJECT]["data_md5"], "data", context="evaluation")
    tracker.finish()
