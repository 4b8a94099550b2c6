"""Prometheus metrics of a training process: what is told to MLflow, and how old the newest checkpoint is.

Every worker exports (its first process does), so that a slow one can be told from the others; losses are the
same on all of them.
"""

import contextlib
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector, start_http_server

logger = logging.getLogger(__name__)

PREFIX = "vargpt_training"
LOSS = "loss/"
# Metrics of a step by their name in MLflow; each is a gauge of that name after PREFIX.
STEP_METRICS = {
    "learning_rate": "Learning rate of the last recorded step",
    "gradient_norm": "Gradient norm before clipping",
    "steps_per_second": "Mean over all attempts",
    "tokens_per_step": "Target tokens of text and images in one step, over all processes",
    "skipped_steps": "Steps skipped as their gradient was not finite",
    "data_seconds": "Time that this process waited for the samples of the last recorded step",
}


class MetricsExporter:
    """Gauges of one stage, served over HTTP.

    Args:
        stage: Value of the label `stage`.
        folder: Where checkpoints are committed, at any depth below.
    """

    def __init__(self, stage: str, folder: Path) -> None:
        self.stage, self.folder = stage, folder
        self.registry = CollectorRegistry()
        ProcessCollector(namespace=PREFIX, registry=self.registry)
        self._step_metrics = {name: self._gauge(name, text) for name, text in STEP_METRICS.items()}
        self._loss = self._gauge("loss", "Mean cross-entropy in nats per token", "name")
        self._step = self._gauge("step", "Optimizer steps that are done")
        self._steps = self._gauge("steps", "Optimizer steps of the whole stage")
        self._tokens = Counter(
            "tokens", "Target tokens in recorded steps", ["stage"], namespace=PREFIX, registry=self.registry
        )
        self._checkpoint_every = self._gauge("checkpoint_every_steps", "Steps between two checkpoints")
        self._told = self._gauge("recorded_timestamp_seconds", "When a step was last recorded")
        self._started = self._gauge("start_timestamp_seconds", "When this process began its stage")
        checkpoint = self._gauge("checkpoint_timestamp_seconds", "When the newest checkpoint was committed")
        checkpoint.labels(stage=stage).set_function(self.newest_checkpoint)

    def serve(self, port: int) -> None:
        """Answer Prometheus; a port that is taken is logged, for training does not depend on it."""
        try:
            start_http_server(port, registry=self.registry)
        except OSError as error:
            logger.warning("metrics cannot be served on port %d: %s", port, error)

    def start(self, params: Mapping[str, Any]) -> None:
        """A stage begins with these parameters, as they are tracked."""
        self._started.labels(stage=self.stage).set(time.time())
        for name, gauge in (("steps", self._steps), ("checkpoint_every", self._checkpoint_every)):
            if isinstance(value := params.get(name), int | float):
                gauge.labels(stage=self.stage).set(value)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics of a step."""
        self._step.labels(stage=self.stage).set(step)
        self._told.labels(stage=self.stage).set(time.time())
        for name, value in metrics.items():
            if gauge := self._step_metrics.get(name):
                gauge.labels(stage=self.stage).set(value)
            elif name.startswith(LOSS):
                self._loss.labels(stage=self.stage, name=name.removeprefix(LOSS)).set(value)
        self._tokens.labels(stage=self.stage).inc(metrics.get("tokens_per_step", 0.0))

    def newest_checkpoint(self) -> float:
        """When the newest checkpoint was committed, in seconds since 1970; 0 without any."""
        times = [0.0]
        for marker in self.folder.glob("**/step_*/COMPLETE"):
            # Old steps are deleted while others are looked at.
            with contextlib.suppress(FileNotFoundError):
                times.append(marker.stat().st_mtime)
        return max(times)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, ["stage", *labels], namespace=PREFIX, registry=self.registry)
