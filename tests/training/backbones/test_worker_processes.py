"""Laws of worker processes: how each ended reaches the parent as an exception that decides the exit code."""

import os
import signal
import time

import pytest

from model.errors import UserError
from training.backbones import worker_processes
from training.backbones.worker_processes import run_workers
from training.checkpoints.step_folders import SaveError
from training.errors import Stopped


def raise_user_error(parent):
    raise UserError("there are no scenes")


def raise_value_error(parent):
    raise ValueError("shapes differ")


def raise_os_error(parent):
    raise OSError(116, "Stale file handle")


def raise_save_error(parent):
    raise SaveError("step 4 could not be saved")


def raise_assertion(parent):
    raise AssertionError


def be_killed(parent):
    os.kill(os.getpid(), signal.SIGKILL)


def wait_for_stop(parent):
    while not parent.should_stop():
        time.sleep(0.01)


def stop_after_saving(parent):
    parent.report_step("tokenizer", 0, {})
    wait_for_stop(parent)
    raise Stopped("stopped after 1 of 8 steps")


def stop_without_saving(parent):
    parent.report_step("tokenizer", 0, {})
    wait_for_stop(parent)
    raise SaveError("stopped after 1 steps, which could not be saved")


def be_killed_while_saving(parent):
    parent.report_step("tokenizer", 0, {})
    wait_for_stop(parent)
    be_killed(parent)


def save_for_ever(parent):
    parent.report_step("tokenizer", 0, {})
    time.sleep(600)


def be_killed_before_the_first_step(parent):
    wait_for_stop(parent)
    be_killed(parent)


def run_and_stop(*workers, after):
    """Run workers, and ask them to stop after so many steps of all together."""
    steps = []
    run_workers(
        {worker.__name__: worker for worker in workers},
        lambda *step: steps.append(step),
        lambda: len(steps) >= after,
    )


@pytest.mark.parametrize(
    ("worker", "error", "said"),
    [
        (raise_user_error, UserError, "there are no scenes"),
        (raise_value_error, RuntimeError, "shapes differ"),
        (raise_assertion, RuntimeError, "the raise_assertion died with exit code 1"),
        (raise_os_error, OSError, "Stale file handle"),
        (raise_save_error, OSError, "step 4 could not be saved"),
        (be_killed, OSError, "the be_killed died with exit code -9"),
    ],
)
def test_a_mistake_an_outage_and_a_bug_in_a_worker_stay_what_they_are(worker, error, said):
    with pytest.raises((UserError, OSError, RuntimeError), match=said) as raised:
        run_workers({worker.__name__: worker}, lambda *step: None, lambda: False)

    assert isinstance(raised.value, error)


@pytest.mark.parametrize(
    ("worker", "said"),
    [
        (stop_without_saving, "stopped after 1 steps, which could not be saved"),
        (be_killed_while_saving, "the be_killed_while_saving died with exit code -9"),
        (save_for_ever, "the save_for_ever died with exit code -9"),
    ],
)
def test_a_worker_that_has_learned_and_not_saved_has_not_merely_stopped(worker, said, monkeypatch):
    monkeypatch.setattr(worker_processes, "STOP_TIMEOUT_SECONDS", 2.0)

    with pytest.raises(OSError, match=said):
        run_and_stop(worker, stop_after_saving, after=2)


@pytest.mark.parametrize(
    "workers", [(stop_after_saving,), (be_killed_before_the_first_step, stop_after_saving)]
)
def test_workers_that_lose_nothing_by_a_stop_have_stopped(workers):
    with pytest.raises(Stopped, match="stopped"):
        run_and_stop(*workers, after=1)
