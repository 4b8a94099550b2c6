"""Figures, and models that were trained, evaluated and registered with them."""

import copy
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from model.manifest import manifest_sha256, write_manifest
from training.registry.lineage import Lineage, write_lineage
from training.registry.versions import register
from training.tracking.tracker import open_tracker

METRICS = {
    "draw": {"all_right": 0.97, "unseen": 0.90, "frechet_ratio": 1.8},
    "vqa": {"digit": 0.98, "color": 0.99, "background": 1.0},
    "pope": {"random": 0.97, "popular": 0.96, "adversarial": 0.95},
    "draw_and_describe": 0.95,
    "tokenizer": {"psnr": 29.5, "judge": 0.98},
}
MARGINS = {
    "draw": {"all_right": 0.01, "unseen": 0.02, "frechet_ratio": 0.2},
    "vqa": {"digit": 0.01},
    "pope": {"adversarial": 0.01},
}
FLOORS = {"draw": {"all_right": 0.5}, "vqa": {"digit": 0.5}}
DATA = "d" * 32 + ".dir"


def changed(name: str, value: float) -> dict[str, Any]:
    """The metrics with one of them replaced."""
    metrics = copy.deepcopy(METRICS)
    group, _, key = name.partition(".")
    if key:
        metrics[group][key] = value
    else:
        metrics[group] = value
    return metrics


def measured(metrics: dict[str, Any], folder: Path, **subject: Any) -> dict[str, Any]:
    """Metrics as an evaluation of a folder's weights would write them."""
    facts = {
        "weights_sha256": manifest_sha256(folder),
        "data_md5": DATA,
        "prepared_sha256": "p" * 64,
        "split": "test",
        "questions": 100,
        "drawings": 50,
    }
    return {"subject": facts | subject, **metrics}


def published_model(parent: Path, content: str, data: str = DATA) -> Path:
    """A model folder as a stage publishes it."""
    folder = parent / f"model-{content}"
    folder.mkdir()
    (folder / "model.safetensors").write_text(content)
    (folder / "config.json").write_text("{}")
    weights = write_manifest(folder)
    lineage = Lineage(stage="stage3", data_md5=data, config_sha256="c" * 64, weights_sha256=weights)
    write_lineage(lineage, folder)
    return folder


def tracked_run(uri: str, folder: Path) -> str:
    """A finished run of stage 3; our name for it."""
    tracker = open_tracker(uri, "tests", folder / "spool", is_rank_zero=True, system_seconds=60)
    run = tracker.start("stage3", {}, {})
    tracker.finish(timeout_seconds=60)
    return run


def candidate(
    uri: str, parent: Path, content: str, metrics: dict[str, Any], data: str = DATA, **subject
) -> str:
    """Track a run, publish weights, and register them, as a whole training would; the version."""
    folder = published_model(parent, content, data)
    lineage = Lineage(data_md5=data, config_sha256="c" * 64, git_commit="a" * 40, git_dirty=False)
    figures = measured(metrics, folder, data_md5=data, **subject)
    return register(uri, "vargpt", tracked_run(uri, parent), folder, figures, lineage)


def aliases(uri: str) -> dict[str, str]:
    found = MlflowClient(uri, uri).get_registered_model("vargpt").aliases
    return {alias: str(version) for alias, version in found.items()}
