"""Laws of counting starts: a new checkpoint begins the count anew; neither a stop nor damage ends a job."""

import json
from pathlib import Path

import pytest

from training.launching.attempts import AttemptCounter, total_committed_steps


def commit(folder: Path, step: int) -> None:
    """Leaves a committed checkpoint."""
    marker = folder / f"step_{step}" / "COMPLETE"
    marker.parent.mkdir(parents=True)
    marker.touch()


def test_a_new_checkpoint_restarts_the_count_of_attempts(tmp_path):
    assert [AttemptCounter(tmp_path).begin() for _ in range(3)] == [1, 2, 3]

    commit(tmp_path / "work", 20)

    assert [AttemptCounter(tmp_path).begin() for _ in range(2)] == [1, 2]


def test_a_lost_checkpoint_is_no_new_one(tmp_path):
    commit(tmp_path, 20)
    AttemptCounter(tmp_path).begin()
    commit(tmp_path, 10)

    (tmp_path / "step_20").rename(tmp_path / "step_20.damaged")

    assert AttemptCounter(tmp_path).begin() == 2


@pytest.mark.parametrize("left", ["", "{", "[]", '{"steps": 1}'])
def test_a_damaged_count_is_begun_anew_and_ends_no_job(tmp_path, left):
    (tmp_path / "attempts.json").write_text(left)

    assert AttemptCounter(tmp_path).begin() == 1


def test_a_stopped_start_is_not_counted(tmp_path):
    for _ in range(5):
        attempts = AttemptCounter(tmp_path)
        number = attempts.begin()
        attempts.end(143)

    assert number == 1
    assert json.loads((tmp_path / "attempts.json").read_text()) == {"steps": 0, "attempts": 0}


def test_progress_adds_up_over_all_checkpoint_folders_of_a_stage(tmp_path):
    commit(tmp_path / "tokenizer", 20)
    commit(tmp_path / "tokenizer", 30)
    (tmp_path / "tokenizer" / "step_40").mkdir()
    commit(tmp_path / "vision", 5)

    assert total_committed_steps(tmp_path) == 35
