"""Progress of a run of steps: a bar with rate and time left on a terminal, log lines elsewhere."""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

logger = logging.getLogger(__name__)

LOG_SECONDS = 5.0


class ProgressLine:
    """Shows how many of a number of steps are done, with their rate and the time left.

    Args:
        first: How many steps were done before; they do not count for the rate.
        steps: How many there are in all; None if nobody knows.
        unit: What a step is called.
    """

    def __init__(self, title: str, first: int, steps: int | None, unit: str, bar: Progress | None) -> None:
        self.title, self.first, self.steps, self.unit, self.bar = title, first, steps, unit, bar
        self.began = self.logged = time.monotonic()
        self.task = None if bar is None else bar.add_task(title, total=steps, completed=first, facts="")

    def show(self, done: int, facts: Mapping[str, float]) -> None:
        """Show that `done` steps are done, with `facts` (losses) beside."""
        now = time.monotonic()
        is_due = now - self.logged >= LOG_SECONDS or done == self.steps
        if self.bar is None and not is_due:
            return
        rate = (done - self.first) / max(now - self.began, 1e-9)
        named = [f"{name} {value:.3f}" for name, value in facts.items()]
        text = " ".join([*named, f"{rate:.3g} {self.unit}/s"])
        if self.bar is not None:
            self.bar.update(self.task, completed=done, facts=text)
            return
        self.logged = now
        if self.steps is None:
            logger.info("%s %d %s", self.title, done, text)
        else:
            left = (self.steps - done) / max(rate, 1e-9)
            logger.info("%s %d/%d %s, %.0f s left", self.title, done, self.steps, text, left)


class ProgressLines:
    """Lines side by side, such as those of processes that work at the same time."""

    def __init__(self, bar: Progress | None) -> None:
        self._bar = bar
        self._line_of: dict[str, ProgressLine] = {}

    def add(self, title: str, first: int, steps: int | None, unit: str = "steps") -> ProgressLine:
        """One more line."""
        return ProgressLine(title, first, steps, unit, self._bar)

    def show(self, title: str, done: int, steps: int) -> None:
        """Show how far the part of this title is; the first call, as it begins, adds its line."""
        if title not in self._line_of:
            self._line_of[title] = self.add(title, done, steps)
        self._line_of[title].show(done, {})


@contextmanager
def progress_lines(is_shown: bool = True) -> Iterator[ProgressLines]:
    """Any number of lines; bars only where somebody watches."""
    console = Console(stderr=True)
    if not (is_shown and console.is_terminal):
        yield ProgressLines(None)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[facts]}"),
    )
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=False) as bar:
        yield ProgressLines(bar)


@contextmanager
def progress_line(
    title: str, first: int, steps: int | None, is_shown: bool = True, unit: str = "steps"
) -> Iterator[ProgressLine]:
    """A line for steps from `first` on."""
    with progress_lines(is_shown) as lines:
        yield lines.add(title, first, steps, unit)
