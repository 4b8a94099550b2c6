"""What restarts cost a training: seconds and steps that were lost, added up over all of its attempts.

The record lies beside the checkpoints and says how far training had come, a second ago at most; what a
checkpoint does not hold of that is repeated by the next attempt.
"""

import dataclasses
import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

WRITE_SECONDS = 1.0


@dataclass
class WorkRecord:
    """How far one training has come in all of its attempts, and what was lost on the way.

    Args:
        run: Our own name for its MLflow run.
        step: Steps that were done when this was written.
        seconds: Training time up to there, without what was repeated.
        time: When this was written, in seconds since 1970.
        used_seconds: Time in which processes ran, what was repeated included.
        restarts: Attempts after the first one.
        repeated_steps, repeated_seconds: Work that was done again, as no checkpoint held it.
        down_seconds: Time in which no attempt ran.
    """

    run: str = ""
    step: int = 0
    seconds: float = 0.0
    time: float = 0.0
    used_seconds: float = 0.0
    restarts: int = 0
    repeated_steps: int = 0
    repeated_seconds: float = 0.0
    down_seconds: float = 0.0

    def metrics(self, processes: int) -> dict[str, float]:
        """As the run's metrics; `cost/device_hours` counts one device for each process."""
        return {
            "lost/restarts": self.restarts,
            "lost/repeated_steps": self.repeated_steps,
            "lost/repeated_seconds": self.repeated_seconds,
            "lost/down_seconds": self.down_seconds,
            "cost/device_hours": self.used_seconds * processes / 3600,
        }


class WorkRecorder:
    """Keeps the record of one training in a file.

    Args:
        clock: Seconds since 1970.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self.path, self._clock = path, clock
        self.record = _read(path)
        self._began = self._written = clock()
        self._used_before = self.record.used_seconds

    def begin(self, run: str, first: int, seconds: float) -> None:
        """An attempt goes on after `first` steps, whose training took so many seconds."""
        record = self.record
        if record.time:
            record.restarts += 1
            record.repeated_steps += max(0, record.step - first)
            record.repeated_seconds += max(0.0, record.seconds - seconds)
            record.down_seconds += max(0.0, self._clock() - record.time)
        record.run = run
        self._write(first, seconds)

    def reached(self, step: int, seconds: float) -> None:
        """So many steps are done; written down once a second."""
        if self._clock() - self._written >= WRITE_SECONDS:
            self._write(step, seconds)

    def _write(self, step: int, seconds: float) -> None:
        now = self._written = self._clock()
        record = self.record
        record.step, record.seconds, record.time = step, seconds, now
        record.used_seconds = self._used_before + now - self._began
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_suffix(".tmp")
        try:
            beside.write_text(json.dumps(dataclasses.asdict(record)))
            os.replace(beside, self.path)
        except OSError as error:
            # A figure is not worth a training.
            logger.warning("how far training has come could not be written down: %s", error)


def _read(path: Path) -> WorkRecord:
    """What is written down; an empty record where nothing is, or where it was lost with a machine's power."""
    try:
        return WorkRecord(**json.loads(path.read_text()))
    except FileNotFoundError:
        pass
    except (ValueError, TypeError) as error:
        logger.warning("%s is damaged, what restarts cost is counted anew: %s", path, error)
    return WorkRecord()
