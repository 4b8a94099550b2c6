"""What a run is given by its entry point, besides parameters and folders."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


class MetricsListener(Protocol):
    """Is told the metrics of a run beside MLflow."""

    def start(self, params: Mapping[str, Any]) -> None:
        """The run begins, with these parameters."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics of a step."""

    def log_processes(self, compute_seconds: Sequence[float]) -> None:
        """Seconds in which each process computed before it waited for others, by rank; empty: unknown."""


@dataclass(frozen=True, kw_only=True)
class ImageFacts:
    """What a container image tells of itself; None for what it does not, and where there is no image.

    Args:
        commit: The git commit of its code, which lies there without its history.
        is_dirty: Whether that code had changes that were not committed.
        name: In full, with tag or digest.
    """

    commit: str | None = None
    is_dirty: bool | None = None
    name: str | None = None


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """Tracking, code version and stop signal of one run.

    Args:
        tracking_uri: Where MLflow is; None keeps everything in the spool.
        spool: Folder of what has not reached MLflow yet.
        image: The container image that this runs in, if it does.
        should_stop: Asked between steps.
        exporter: Told what MLflow is told, in every process.
        on_trained: Called after the last step, before the model is written, in every process.
    """

    tracking_uri: str | None
    spool: Path
    image: ImageFacts
    should_stop: Callable[[], bool]
    exporter: MetricsListener | None = None
    on_trained: Callable[[], None] = lambda: None
