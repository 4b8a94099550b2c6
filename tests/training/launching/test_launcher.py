"""Laws of the launcher, with real processes: how they meet, how they stop, and their exit code."""

import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from model.errors import UserError
from tests.training.launching.operator_settings import of_another_node, operator_variables
from training.launching import launcher
from training.launching.exit_codes import group_exit_code
from training.launching.heartbeats import HeartbeatWriter
from training.launching.rendezvous import Rendezvous, read_rendezvous
from training.launching.watchdog import Patience

# In place of training: process N ends with the Nth of --codes, or waits for a signal and "saves" without any.
CHILD = """
import argparse, os, signal, sys, time
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("stage")
parser.add_argument("--outputs", type=Path)
parser.add_argument("--codes", nargs="*", type=int)
options = parser.parse_args()
rank = os.environ.get("RANK", "0")

def save(*_):
    Path(options.outputs, "saved-" + rank).touch()
    sys.exit(143)

signal.signal(signal.SIGTERM, save)
options.outputs.mkdir(exist_ok=True)
Path(options.outputs, "began-" + rank).write_text(f"{options.stage} of {os.environ.get('WORLD_SIZE')}")
if not options.codes:
    time.sleep(60)
code = options.codes[int(rank)]
if code < 0:
    os.kill(os.getpid(), -code)
time.sleep(0 if code else 0.5)
sys.exit(code)
"""

GLOO_CHILD = """
import argparse, torch
from pathlib import Path
from torch import distributed

parser = argparse.ArgumentParser()
parser.add_argument("stage")
parser.add_argument("--outputs", type=Path)
options = parser.parse_args()
distributed.init_process_group("gloo")
total = torch.tensor([distributed.get_rank() + 1])
distributed.all_reduce(total)
options.outputs.mkdir(exist_ok=True)
Path(options.outputs, f"sum-{distributed.get_rank()}").write_text(str(total.item()))
distributed.barrier()
distributed.destroy_process_group()
"""


@pytest.fixture(autouse=True)
def _programs(tmp_path):
    (tmp_path / "child.py").write_text(CHILD)
    (tmp_path / "gloo_child.py").write_text(GLOO_CHILD)


def wait_for(*paths: Path, seconds: float = 40) -> None:
    """Waits until files are there."""
    until = time.monotonic() + seconds
    while not all(path.exists() for path in paths):
        assert time.monotonic() < until, f"none of {paths} after {seconds} s"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("codes", "code"),
    [
        ([0, 0], 0),
        ([2], 2),
        ([1, 2], 2),
        ([143, 2], 2),
        ([143, 143], 143),
        ([143, 0], 143),
        ([-signal.SIGTERM], 143),
        ([1], 138),
        ([143, 1], 138),
        ([3], 138),
        ([-signal.SIGKILL], 137),
        ([-signal.SIGSEGV, 143], 139),
        ([-signal.SIGABRT], 134),
    ],
)
def test_a_permanent_failure_outweighs_a_crash_which_outweighs_a_stop(codes, code):
    assert group_exit_code(codes) == code


@pytest.mark.parametrize("code", [0, 1, 2, 143])
def test_a_single_process_ends_with_the_exit_code_of_training(start, code):
    process = start("--module", "child", "stage1", "--codes", str(code))

    assert process.wait(timeout=30) == code


def test_a_single_process_replaces_the_launcher_and_gets_its_signals(start, tmp_path):
    process = start("--module", "child", "stage1", "--codes")
    wait_for(tmp_path / "outputs" / "began-0")

    process.terminate()

    assert process.wait(timeout=30) == 143
    assert (tmp_path / "outputs" / "saved-0").exists()


def test_two_processes_meet_on_one_machine_and_add_up(start, tmp_path):
    process = start("--module", "gloo_child", "stage1", "--nproc", "2")

    assert process.wait(timeout=60) == 0
    assert [(tmp_path / "outputs" / f"sum-{rank}").read_text() for rank in (0, 1)] == ["3", "3"]


def test_two_nodes_meet_at_the_endpoint_of_the_operator(start, tmp_path):
    variables = operator_variables(number_of_nodes=2)

    processes = [start("--module", "gloo_child", "stage1", **variables)]
    processes.append(start("--module", "gloo_child", "stage1", **of_another_node(variables)))

    assert [process.wait(timeout=60) for process in processes] == [0, 0]
    assert [(tmp_path / "outputs" / f"sum-{rank}").read_text() for rank in (0, 1)] == ["3", "3"]


def test_a_mistake_in_one_of_two_processes_ends_both_with_two(start):
    process = start("--module", "child", "stage1", "--nproc", "2", "--codes", "0", "2")

    assert process.wait(timeout=30) == 2


def test_a_killed_process_is_named_and_gives_its_group_a_retryable_exit_code(start):
    process = start("--module", "child", "stage1", "--nproc", "2", "--codes", "0", str(-signal.SIGKILL))

    _, errors = process.communicate(timeout=30)

    assert process.returncode == 137
    assert "launch: process 1 ended with exit code -9" in errors.splitlines()


def test_every_process_saves_before_a_stopped_launcher_ends(start, tmp_path):
    process = start("--module", "child", "stage1", "--nproc", "2", "--codes")
    wait_for(tmp_path / "outputs" / "began-0", tmp_path / "outputs" / "began-1")

    process.terminate()

    assert process.wait(timeout=30) == 143
    assert {path.name for path in (tmp_path / "outputs").glob("saved-*")} == {"saved-0", "saved-1"}


# It loads torch, or is in the rendezvous, alone.
@pytest.mark.parametrize("seconds", [0.5, 1.0, 3.0])
def test_a_launcher_that_waits_for_its_peers_can_be_stopped(start, tmp_path, seconds):
    process = start("--module", "child", "stage1", **operator_variables(number_of_nodes=2))
    wait_for(tmp_path / "outputs" / "stage1" / "attempts.json")
    time.sleep(seconds)

    process.terminate()

    assert process.wait(timeout=60) == 143


def test_a_job_without_new_checkpoints_ends_with_two_and_the_reason(start, tmp_path):
    crash = ("--module", "child", "stage1", "--max-attempts", "2", "--codes", "1")

    codes = []
    for _ in range(3):
        process = start(*crash, **operator_variables(number_of_nodes=1))
        _, errors = process.communicate(timeout=30)
        codes.append(process.returncode)

    assert codes == [138, 138, 2]
    assert "error: no checkpoint was committed in 2 attempts; giving up" in errors
    assert not (tmp_path / "outputs" / "stage1" / "attempts.json").exists()


def test_a_disk_that_fails_before_training_can_be_tried_again(monkeypatch):
    def fail(*_):
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(launcher, "launch", fail)

    assert launcher.main(["stage1"]) == 138


def test_a_value_error_that_no_user_can_mend_is_not_told_as_a_mistake(monkeypatch):
    def fail(*_):
        raise ValueError("Expected both tensors on one device")

    monkeypatch.setattr(launcher, "launch", fail)

    with pytest.raises(ValueError, match="on one device"):
        launcher.main(["stage1"])


def test_processes_for_gpus_that_are_not_there_are_a_mistake(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)

    with pytest.raises(UserError, match=r"--nproc cannot be gpu here: Cuda is not available"):
        read_rendezvous({}, "gpu")


@pytest.mark.parametrize(("is_done", "code"), [(True, 0), (False, 143)])
def test_a_signal_after_the_work_is_finished_does_not_have_it_repeated(monkeypatch, is_done, code):
    def wait_for_other_nodes(*_):
        writer = HeartbeatWriter.started()
        if is_done:
            writer.done()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    # The processes of this node have ended: of them only their heartbeats are left.
    monkeypatch.setattr(launcher, "_run_elastic", wait_for_other_nodes)
    monkeypatch.setattr(psutil.Process, "children", lambda _: [])
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    try:
        found = launcher.run_group(Rendezvous(num_processes=2), [], Patience(), os._exit)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

    assert found == code


@pytest.mark.parametrize("nodes", ["two", "1:many", "0", ""])
def test_a_wrong_number_of_nodes_is_named(nodes):
    with pytest.raises(ValueError, match="PET_NNODES must count at least 1, not"):
        read_rendezvous({"PET_NNODES": nodes}, None)


def test_a_wrong_number_of_processes_ends_with_two_and_the_reason(start):
    process = start("--module", "child", "stage1", "--nproc", "some")

    _, errors = process.communicate(timeout=30)

    assert process.returncode == 2
    assert "error: --nproc must count at least 1, not 'some'" in errors


def test_backbones_of_several_processes_are_refused_in_one_line(start, tmp_path):
    for process in (start("backbones", "--nproc", "2"), start("backbones", **operator_variables(2))):
        _, errors = process.communicate(timeout=60)

        assert process.returncode == 2
        assert "error: backbones is one process" in errors and "Traceback" not in errors
    assert not (tmp_path / "outputs").exists()
