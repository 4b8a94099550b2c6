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
    """Shows how many of a number of steps are done, with their rate and the time left."""

    def __init__(self, title: str, first: int, steps: int, bar: Progress | None) -> None:
        self.title, self.first, self.steps, self.bar = title, first, steps, bar
        self.began = self.logged = time.monotonic()
        self.task = None if bar is None else bar.add_task(title, total=steps, completed=first, facts="")

    def show(self, done: int, facts: Mapping[str, float]) -> None:
        """Show that `done` steps are done, with `facts` (losses) beside."""
        now = time.monotonic()
        rate = (done - self.first) / max(now - self.began, 1e-9)
        text = " ".join(f"{name} {value:.3f}" for name, value in facts.items()) + f" {rate:.2f} steps/s"
        if self.bar is not None:
            self.bar.update(self.task, completed=done, facts=text)
        elif now - self.logged >= LOG_SECONDS or done == self.steps:
            self.logged = now
            left = (self.steps - done) / max(rate, 1e-9)
            logger.info("%s %d/%d %s, %.0f s left", self.title, done, self.steps, text, left)


@contextmanager
def progress_line(title: str, first: int, steps: int, is_shown: bool = True) -> Iterator[ProgressLine]:
    """Progress of steps from `first` on: a bar on a terminal, log lines where there is none."""
    console = Console(stderr=True)
    if not (is_shown and console.is_terminal):
        yield ProgressLine(title, first, steps, None)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[facts]}"),
    )
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=False) as bar:
        yield ProgressLine(title, first, steps, bar)
