"""Tracks a run: everything is written to a spool on disk first, and a thread sends it to MLflow from there.

Training never waits for MLflow and never fails because of it. What could not be sent stays in the spool and
is sent by the next run that uses the same folder, or by `vargpt sync`. Rank zero tracks; every other rank is
given the silent `Tracker`.
"""

import logging
import math
import re
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
from PIL import Image

from model.errors import UserError
from training.run_context import MetricsListener
from training.tracking.sender import Sender
from training.tracking.spool import Journal, Spool

logger = logging.getLogger(__name__)

EXPERIMENT = "vargpt"
# Steps between two records of metrics.
LOG_EVERY = 5
STATUSES = ("FINISHED", "FAILED", "KILLED")
# Larger artifacts are not copied into the spool: they must stay where they are until they have been sent.
COPY_LIMIT_BYTES = 16 << 20
MEBIBYTE = 1 << 20


class Tracker:
    """Tracker that sends nothing to MLflow: the interface, and what every process but rank zero uses.

    Args:
        exporter: What it is told is exported to Prometheus all the same.
    """

    def __init__(self, exporter: MetricsListener | None = None) -> None:
        self._exporter = exporter

    @property
    def mlflow_run_id(self) -> str | None:
        """The id that MLflow gave the run; None before MLflow has been reached."""
        return None

    def start(
        self, stage: str, params: Mapping[str, Any], tags: Mapping[str, Any], run_id: str | None = None
    ) -> str:
        """Begin a run, or go on with `run_id`; returns our own name for it, to be kept in checkpoints."""
        if self._exporter:
            self._exporter.start(params)
        return run_id or ""

    def log(self, step: int, **metrics: float) -> None:
        """Record metrics of a step; for one metric, steps only grow."""
        if self._exporter:
            self._exporter.log(step, metrics)

    def processes(self, compute_seconds: Sequence[float]) -> None:
        """Export how long each process computed, by rank; to Prometheus alone, for there may be hundreds."""
        if self._exporter:
            self._exporter.log_processes(compute_seconds)

    def tag(self, **tags: str) -> None:
        """Set or replace tags."""

    def image(self, step: int, name: str, picture: Image.Image) -> None:
        """Record a picture, such as a grid of samples."""

    def artifact(self, path: Path, folder: str = "") -> None:
        """Record a file, or every file of a folder, under a folder of the run's artifacts."""

    def dataset(self, name: str, md5: str, path: str, context: str = "training") -> None:
        """Record which data the run has seen, by the hash that DVC gave it."""

    def model_version(self, name: str, folder: str, tags: Mapping[str, str]) -> None:
        """Make a folder of the run's artifacts a version of a registered model, once."""

    def finish(self, status: str = "FINISHED", timeout_seconds: float = 30.0) -> None:
        """End the run with FINISHED, FAILED or KILLED; waits at most this long for what is unsent."""


class SpoolTracker(Tracker):
    """Tracker that writes to a spool, which a thread of its own sends to MLflow."""

    def __init__(
        self,
        uri: str | None,
        experiment: str,
        spool_dir: Path,
        system_seconds: float,
        exporter: MetricsListener | None,
    ) -> None:
        super().__init__(exporter)
        self._uri, self._experiment, self._spool_dir = uri, experiment, Path(spool_dir)
        self._system_seconds = system_seconds
        self._journal: Journal | None = None
        self._sender: Sender | None = None
        self._stopped = threading.Event()
        self._files = 0
        self._last_step: dict[str, int] = {}
        self._has_warned = False

    @property
    def mlflow_run_id(self) -> str | None:
        return self._sender.mlflow_run_id if self._sender else None

    def start(
        self, stage: str, params: Mapping[str, Any], tags: Mapping[str, Any], run_id: str | None = None
    ) -> str:
        run = super().start(stage, params, tags, run_id) or uuid.uuid4().hex
        name = f"{time.time_ns() // 1000:017d}-{re.sub(r'[^A-Za-z0-9_-]', '_', stage)}-{run[:8]}"
        self._spool = Spool(self._spool_dir / f"{name}.jsonl")
        self._journal = Journal(self._spool.path)
        flat = {key: str(value) for key, value in flat_params(params).items()}
        texts = {key: str(value) for key, value in tags.items()}
        self._write("start", run=run, experiment=self._experiment, stage=stage, params=flat, tags=texts)
        if self._uri:
            self._sender = Sender(self._spool, self._uri)
            self._sender.start()
        threading.Thread(target=self._watch_system, name="system-metrics", daemon=True).start()
        return run

    def log(self, step: int, **metrics: float) -> None:
        super().log(step, **metrics)
        values = {
            key: _as_json(value) for key, value in metrics.items() if step > self._last_step.get(key, -1)
        }
        if (late := sorted(metrics.keys() - values.keys())) and not self._has_warned:
            self._has_warned = True
            logger.warning("%s of step %d comes after later steps: skipped", late[0], step)
        self._last_step |= dict.fromkeys(values, step)
        if values:
            self._write("metrics", step=step, values=values)

    def tag(self, **tags: str) -> None:
        self._write("tags", tags={key: str(value) for key, value in tags.items()})

    def image(self, step: int, name: str, picture: Image.Image) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_\-./ ]+", name):
            raise UserError(f"name of a picture may hold letters, digits and _-./ only, got {name!r}")
        file = self._new_file(".png")
        if file and self._on_disk(lambda: picture.save(file)):
            self._write("image", step=step, name=name, file=file.name)

    def artifact(self, path: Path, folder: str = "") -> None:
        path = Path(path)
        if path.is_dir():
            for part in sorted(part for part in path.rglob("*") if part.is_file()):
                inside = part.relative_to(path.parent).parent.as_posix()
                self.artifact(part, f"{folder}/{inside}".strip("/"))
            return
        if not path.is_file():
            raise UserError(f"the artifact {path} does not exist")
        kept: Path | None = path.resolve()
        if path.stat().st_size <= COPY_LIMIT_BYTES:
            # A folder for each, because MLflow takes the file's own name.
            kept = self._new_file(f"/{path.name}")
            if kept is None or not self._on_disk(lambda: shutil.copyfile(path, kept)):
                return
            kept = kept.relative_to(self._spool.files)
        self._write("artifact", file=str(kept), folder=folder)

    def dataset(self, name: str, md5: str, path: str, context: str = "training") -> None:
        self._write("dataset", name=name, md5=md5, path=path, context=context)

    def model_version(self, name: str, folder: str, tags: Mapping[str, str]) -> None:
        self._write("model_version", name=name, folder=folder, tags=dict(tags))

    def finish(self, status: str = "FINISHED", timeout_seconds: float = 30.0) -> None:
        if status not in STATUSES:
            raise UserError(f"status must be one of {', '.join(STATUSES)}, got {status!r}")
        if self._journal is None:
            return
        self._stopped.set()
        self._write("finish", status=status)
        journal, self._journal = self._journal, None
        if self._sender and self._sender.finish(timeout_seconds):
            self._spool.remove()
        elif self._sender:
            logger.warning(
                "not all tracking has reached MLflow (%s): the rest is kept in %s and sent by the next run, "
                "or by `vargpt sync`",
                self._sender.reason or f"it took longer than {timeout_seconds:g} s",
                self._spool.path,
            )
        # While the thread is still sending, the lock keeps other processes from sending the same again.
        if not (self._sender and self._sender.is_alive()):
            self._on_disk(journal.close)

    def _write(self, kind: str, **fields: Any) -> None:
        if self._journal is not None:
            self._journal.append({"kind": kind, "time": int(time.time() * 1000), **fields})

    def _new_file(self, suffix: str) -> Path | None:
        """A path in the spool's folder of files; None when the disk has no room for a folder."""
        self._files += 1
        path = self._spool.files / f"{self._files:06d}{suffix}"
        return path if self._on_disk(lambda: path.parent.mkdir(parents=True, exist_ok=True)) else None

    def _on_disk(self, action: Callable[[], object]) -> bool:
        """Whether the action went well; a full disk costs a picture, not the training."""
        try:
            action()
        except OSError as error:
            logger.warning("something could not be kept for tracking: %s", error)
            return False
        return True

    def _watch_system(self) -> None:
        """Record processor and memory load of machine and process, at once and then every so often."""
        process = psutil.Process()
        # The first call only sets the mark that later ones measure from.
        psutil.cpu_percent()
        while not self._stopped.wait(min(1.0, self._system_seconds)):
            memory = psutil.virtual_memory()
            values = {
                "system/cpu_utilization_percentage": psutil.cpu_percent(),
                "system/system_memory_usage_megabytes": memory.used / MEBIBYTE,
                "system/system_memory_usage_percentage": memory.percent,
                "system/process_memory_megabytes": process.memory_info().rss / MEBIBYTE,
            }
            self._write("metrics", step=None, values=values)
            if self._stopped.wait(self._system_seconds):
                return


def open_tracker(
    uri: str | None,
    experiment: str,
    spool_dir: Path,
    is_rank_zero: bool,
    system_seconds: float = 10.0,
    exporter: MetricsListener | None = None,
) -> Tracker:
    """The tracker of this process; without a `uri` the spool is only written, to be sent by `vargpt sync`."""
    if is_rank_zero:
        return SpoolTracker(uri, experiment, spool_dir, system_seconds, exporter)
    return Tracker(exporter)


def _as_json(value: float) -> float | str:
    """A number; JSON has no word for not-a-number and infinity, so these become text that float() reads."""
    return float(value) if math.isfinite(value) else str(float(value))


def flat_params(params: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested parameters under dotted names."""
    flat: dict[str, Any] = {}
    for key, value in params.items():
        if isinstance(value, Mapping):
            flat |= flat_params(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
