"""Laws of progress: of every part one reads how much is done and how long the rest takes."""

import logging
import re
import time

from training.tracking import progress
from training.tracking.progress import ProgressLines


def test_parts_side_by_side_each_tell_the_time_left_from_their_own_beginning(caplog, monkeypatch):
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)
    lines = ProgressLines(None)

    with caplog.at_level(logging.INFO):
        lines.show("questions", 0, 4)
        time.sleep(0.2)
        lines.show("drawings", 0, 2)
        lines.show("questions", 1, 4)
        lines.show("drawings", 2, 2)

    *_, questions, drawings = [record.getMessage() for record in caplog.records]
    assert re.fullmatch(r"questions 1/4 [\d.]+ steps/s, 1 s left", questions)
    assert re.fullmatch(r"drawings 2/2 [\d.e+]+ steps/s, 0 s left", drawings)
