"""Prometheus metrics of a training process: what is told to MLflow, and how old the newest checkpoint is.

Every worker exports (its first process does), so that a slow one can be told from the others; losses are the
same on all of them. Names and units are as Prometheus expects: seconds, bytes, shares of 1 as `_ratio`.
"""

import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry, Gauge, ProcessCollector, start_http_server

logger = logging.getLogger(__name__)

PREFIX = "vargpt_training"


class Series(NamedTuple):
    """A gauge of a metric that MLflow is told, or of several that differ in what follows their slash.

    Args:
        name: After PREFIX.
        label: Whose value is what follows the slash.
        factor: From MLflow's unit to that of `name`.
    """

    name: str
    text: str
    label: str = ""
    factor: float = 1.0


# By the name in MLflow; one that ends with a slash stands for all that begin so.
TOLD = {
    "loss/": Series("loss", "Mean cross-entropy in nats per token", "name"),
    "validation/": Series("validation_loss", "The same, of what is held out", "name"),
    "loss_spikes": Series("loss_spikes", "Losses of this attempt that stood out from those before"),
    "learning_rate": Series("learning_rate", "Learning rate of the last recorded step"),
    "gradient_norm": Series("gradient_norm", "Gradient norm before clipping"),
    "gradient_norm_of/": Series("gradient_norm_by_part", "The same, of one part of the model", "part"),
    "skipped_steps": Series("skipped_steps", "Steps skipped as their gradient was not finite"),
    "steps_per_second": Series("steps_per_second", "Mean over all attempts"),
    "tokens_per_step": Series("tokens_per_step", "Target tokens of one step, over all processes"),
    "samples_per_second": Series("samples_per_second", "Over all processes"),
    "positions_per_second": Series("positions_per_second", "Of the language model, over all processes"),
    "pictures_per_second": Series("pictures_per_second", "Pictures read or drawn, over all processes"),
    "drawings_per_second": Series("drawings_per_second", "Pictures to be drawn, over all processes"),
    "teraflops/": Series("flops_per_second", "Model FLOP/s of one device, by part", "part", 1e12),
    "mfu/": Series("mfu_ratio", "Model FLOPs utilisation, by part", "part"),
    "step_seconds": Series("step_seconds", "Time of the last recorded step"),
    "data_seconds": Series("data_seconds", "Time in it that this process waited for its samples"),
    "checkpoint_stall_seconds": Series("checkpoint_stall_seconds", "Time training waited for the last one"),
    "checkpoint_write_seconds": Series("checkpoint_write_seconds", "Time this process wrote it meanwhile"),
    "peak_memory_gigabytes": Series("peak_memory_bytes", "Most memory of this process, on a CPU", factor=1e9),
    "gpu_peak_gigabytes": Series("gpu_peak_bytes", "Most GPU memory of this process", factor=1e9),
    "lost/restarts": Series("restarts", "Attempts after the first one"),
    "lost/repeated_steps": Series("repeated_steps", "Steps done again, as no checkpoint held them"),
    "lost/repeated_seconds": Series("repeated_seconds", "Time of these steps"),
    "lost/down_seconds": Series("down_seconds", "Time in which no attempt ran"),
    "cost/device_hours": Series("device_seconds", "Time of all devices, over all attempts", factor=3600),
}
# Of the stage `backbones`, and of whatever is told before it is listed above.
OTHER = Series("other", "What has no series of its own, by its name in MLflow", "name")


def series_of(told: str) -> tuple[Series, dict[str, str]]:
    """The series of a metric by its name in MLflow, and the series' own label."""
    group, slash, rest = told.partition("/")
    if series := TOLD.get(told):
        return series, {}
    if series := TOLD.get(group + slash):
        return series, {series.label: rest}
    return OTHER, {OTHER.label: told}


class MetricsExporter:
    """Gauges of one stage, served over HTTP.

    Args:
        stage: Value of the label `stage`.
        folder: Where checkpoints are committed, at any depth below.
        ranks: Of the processes of this node.
    """

    def __init__(self, stage: str, folder: Path, ranks: Sequence[int] = (0,)) -> None:
        self.stage, self.folder, self.ranks = stage, folder, ranks
        self.registry = CollectorRegistry()
        ProcessCollector(namespace=PREFIX, registry=self.registry)
        self._gauges = {
            series: self._gauge(series.name, series.text, *filter(None, [series.label]))
            for series in (*TOLD.values(), OTHER)
        }
        text = "Time in the last recorded step that a process computed before it waited for others"
        self._compute = self._gauge("compute_seconds", text, "rank")
        self._step = self._gauge("step", "Optimizer steps that are done")
        self._steps = self._gauge("steps", "Optimizer steps of the whole stage")
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
            series, label = series_of(name)
            self._gauges[series].labels(stage=self.stage, **label).set(value * series.factor)

    def log_processes(self, compute_seconds: Sequence[float]) -> None:
        """Seconds by rank, of which those of this node are exported; empty: unknown."""
        for rank in self.ranks if compute_seconds else ():
            self._compute.labels(stage=self.stage, rank=str(rank)).set(compute_seconds[rank])

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
