"""Counts attempts of a job that made no new checkpoint: an operator with ExitCode restarts it without end."""

import json
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from training.checkpoints import step_folders
from training.launching.exit_codes import DONE, PERMANENT_FAILURE, STOPPED

logger = logging.getLogger(__name__)


class AttemptCounter:
    """Number of starts since the last new checkpoint, in a file on the volume of the checkpoints.

    A start is counted before it happens, so that a launcher that is killed has counted, too.

    Args:
        folder: Of the stage; checkpoints lie anywhere below it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "attempts.json"

    def begin(self) -> int:
        """Count this start; its number, from 1."""
        steps = total_committed_steps(self.folder)
        saved = self._read()
        attempts = saved["attempts"] if steps <= saved["steps"] else 0
        self._write(max(steps, saved["steps"]), attempts + 1)
        return attempts + 1

    def end(self, code: int) -> None:
        """Uncount this start if it was merely stopped; delete the count when the job is over."""
        if code in (DONE, PERMANENT_FAILURE):
            self.path.unlink(missing_ok=True)
        elif code == STOPPED:
            saved = self._read()
            self._write(saved["steps"], max(saved["attempts"] - 1, 0))

    def _read(self) -> dict[str, int]:
        """What was counted; nothing where no file is, or one that lost its content with the power."""
        try:
            saved = json.loads(self.path.read_text())
            return {"steps": int(saved["steps"]), "attempts": int(saved["attempts"])}
        except FileNotFoundError:
            pass
        except (ValueError, TypeError, KeyError):
            logger.warning("%s is damaged: attempts are counted anew", self.path)
        return {"steps": 0, "attempts": 0}

    def _write(self, steps: int, attempts: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps({"steps": steps, "attempts": attempts}))
        temporary.replace(self.path)


def total_committed_steps(folder: Path) -> int:
    """The newest committed step of each checkpoint folder below this one, added up."""
    newest: Counter[Path] = Counter()
    for step, number in _committed(folder):
        newest[step.parent] = max(newest[step.parent], number)
    return newest.total()


def newest_checkpoint_bytes(folder: Path) -> int:
    """Size of the checkpoint that was committed last below this folder; 0 without one."""
    steps = sorted((step.stat().st_mtime, step) for step, _ in _committed(folder))
    return step_folders.num_bytes(steps[-1][1]) if steps else 0


def _committed(folder: Path) -> Iterator[tuple[Path, int]]:
    """Folders of committed checkpoints, with their step."""
    for marker in folder.glob("**/step_*/COMPLETE"):
        number = marker.parent.name.removeprefix("step_")
        if number.isdecimal():
            yield marker.parent, int(number)
