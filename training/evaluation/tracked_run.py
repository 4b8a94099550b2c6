"""An evaluation as a run of its own in MLflow, beside the runs of the stages."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.registry.gates import numbers
from training.registry.lineage import read_lineage
from training.tracking.tracker import EXPERIMENT, open_tracker


def track_evaluation(
    model_dir: Path, metrics: Mapping[str, Any], plots_dir: Path, tracking_uri: str, spool: Path
) -> None:
    """Record figures and plots with the lineage of the model that they are about."""
    lineage = read_lineage(model_dir)
    tracker = open_tracker(tracking_uri, EXPERIMENT, spool, is_rank_zero=True)
    tracker.start("evaluate", {"model": str(model_dir), "split": metrics["split"]}, lineage.tags())
    figures = {f"eval/{name.replace('.', '/')}": value for name, value in numbers(metrics).items()}
    tracker.log(0, **figures)
    tracker.artifact(plots_dir)
    tracker.dataset("digits", lineage.data_md5, "data", context="evaluation")
    tracker.finish()
