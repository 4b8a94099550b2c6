"""Laws of the record of lost work: what is repeated, and the time between attempts, counts once."""

import pytest

from training.stages.work_record import WorkRecord, WorkRecorder


class Clock:
    """A clock that is set by hand."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


def attempt(path, clock, first, last, seconds_per_step=2.0):
    """One attempt from `first` to `last` steps that is killed there."""
    recorder = WorkRecorder(path, clock)
    recorder.begin("run", first, first * seconds_per_step)
    for step in range(first + 1, last + 1):
        clock.now += seconds_per_step
        recorder.reached(step, step * seconds_per_step)
    return recorder.record


def test_steps_after_the_last_checkpoint_are_repeated_and_the_time_between_is_down(tmp_path, clock):
    path = tmp_path / "work.run.json"
    attempt(path, clock, 0, 13)
    clock.now += 45

    record = attempt(path, clock, 10, 20)

    assert (record.restarts, record.repeated_steps, record.repeated_seconds) == (1, 3, 6.0)
    assert record.down_seconds == 45
    assert record.used_seconds == 13 * 2 + 10 * 2


def test_losses_add_up_over_attempts_and_a_clean_stop_repeats_nothing(tmp_path, clock):
    path = tmp_path / "work.run.json"
    attempt(path, clock, 0, 12)
    attempt(path, clock, 10, 15)

    record = attempt(path, clock, 15, 16)

    assert (record.restarts, record.repeated_steps) == (2, 2)


def test_a_training_that_was_never_interrupted_has_lost_nothing(tmp_path, clock):
    metrics = attempt(tmp_path / "work.run.json", clock, 0, 1800).metrics(processes=4)

    assert metrics == {
        "lost/restarts": 0,
        "lost/repeated_steps": 0,
        "lost/repeated_seconds": 0,
        "lost/down_seconds": 0,
        "cost/device_hours": 4.0,
    }


def test_the_run_of_a_training_is_known_before_its_first_checkpoint(tmp_path, clock):
    attempt(tmp_path / "work.run.json", clock, 0, 0)

    assert WorkRecorder(tmp_path / "work.run.json", clock).record.run == "run"


@pytest.mark.parametrize("left", ["", "{", "[]", '{"no_such": 1}'])
def test_a_damaged_record_costs_a_figure_and_no_training(tmp_path, left):
    path = tmp_path / "work.json"
    path.write_text(left)

    assert WorkRecorder(path).record == WorkRecord()
