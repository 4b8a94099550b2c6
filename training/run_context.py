"""What a run is given by its entry point, besides parameters and folders."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """Tracking, code version and stop signal of one run.

    Args:
        tracking_uri: Where MLflow is; None keeps everything in the spool.
        spool: Folder of what has not reached MLflow yet.
        commit: The git commit where the code lies without its history, as in an image.
        should_stop: Asked between steps.
    """

    tracking_uri: str | None
    spool: Path
    commit: str | None
    should_stop: Callable[[], bool]
