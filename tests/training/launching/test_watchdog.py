"""Laws of the watchdog, with real launchers: whatever is silent is named, and nothing hangs."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.training.launching.operator_settings import of_another_node, operator_variables
from training.launching.heartbeats import HeartbeatWriter, read_heartbeats
from training.launching.watchdog import Patience, watched

SILENCE = ("--silence-seconds", "6")
# Processes that add up without end, as training does, and wait for each other for ten minutes.
CHILD = """
import argparse, os, sys, time
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed

from training.launching.heartbeats import HeartbeatWriter
from training.parent_death import die_with_parent

parser = argparse.ArgumentParser()
parser.add_argument("stage")
parser.add_argument("--outputs", type=Path)
parser.add_argument("--hang", type=int)
parser.add_argument("--steps", type=int, default=10**9)
parser.add_argument("--saving", type=float, default=0.0)
parser.add_argument("--writing", type=float, default=0.0)
options = parser.parse_args()
die_with_parent(int(os.environ["VARGPT_LAUNCHER_PID"]))
heartbeat = HeartbeatWriter.started()
distributed.init_process_group("gloo", timeout=timedelta(minutes=10))
rank = distributed.get_rank()


def never_ends():
    time.sleep(1000)


for step in range(options.steps):
    heartbeat.step()
    if options.hang == rank and step == 3:
        never_ends()
    distributed.all_reduce(torch.ones(1))
    Path(options.outputs, f"pid-{rank}").write_text(str(os.getpid()))
    time.sleep(0.05)
heartbeat.trained()
if rank == 0:
    time.sleep(options.writing)
distributed.barrier()
# What takes longer on one node than the other is patient with.
time.sleep(options.saving * rank)
heartbeat.done()
"""


@pytest.fixture(autouse=True)
def _program(tmp_path):
    (tmp_path / "busy.py").write_text(CHILD)
    (tmp_path / "outputs").mkdir()


@pytest.fixture
def two_nodes(start, tmp_path):
    """Two launchers that train together; the first one hosts the store."""
    variables = operator_variables(number_of_nodes=2)
    nodes = [start("--module", "busy", "stage1", *SILENCE, **variables)]
    nodes.append(start("--module", "busy", "stage1", *SILENCE, **of_another_node(variables)))
    pids_of(tmp_path / "outputs", 2)
    # Until they have heard of each other.
    time.sleep(3)
    return nodes


def pids_of(outputs: Path, count: int) -> list[int]:
    """Process ids of the training processes, when all of them train."""
    until = time.monotonic() + 240
    paths = [outputs / f"pid-{rank}" for rank in range(count)]
    while not all(path.is_file() and path.read_text() for path in paths):
        assert time.monotonic() < until, "training has not begun"
        time.sleep(0.05)
    return [int(path.read_text()) for path in paths]


def vanish(launcher):
    """What a machine that is gone looks like from another one: connections stay open and nobody answers."""
    tree = psutil.Process(launcher.pid)
    for process in [tree, *tree.children(recursive=True)]:
        process.send_signal(signal.SIGSTOP)


@pytest.mark.slow
def test_a_node_leaves_to_be_restarted_when_the_node_of_the_store_vanishes(two_nodes):
    host, survivor = two_nodes

    vanish(host)

    _, said = survivor.communicate(timeout=180)
    assert survivor.returncode == 138
    assert "error: the node of the store" in said and "has not answered for" in said


@pytest.mark.slow
def test_the_node_of_the_store_names_a_node_that_vanishes_with_its_ranks(two_nodes, tmp_path):
    host, other = two_nodes
    rank = next(
        rank
        for rank, pid in enumerate(pids_of(tmp_path / "outputs", 2))
        if psutil.Process(pid).ppid() == other.pid
    )

    vanish(other)

    _, said = host.communicate(timeout=180)
    assert host.returncode == 138
    assert f"-{other.pid} with rank {rank} has not been heard of" in said


@pytest.mark.slow
def test_a_frozen_training_process_is_named_and_all_nodes_leave(two_nodes, tmp_path):
    psutil.Process(pids_of(tmp_path / "outputs", 2)[1]).send_signal(signal.SIGSTOP)

    said = "".join(node.communicate(timeout=180)[1] for node in two_nodes)

    assert [node.returncode for node in two_nodes] == [138, 138]
    assert "error: rank 1 (process" in said and "has been frozen" in said


@pytest.mark.slow
def test_a_step_that_does_not_end_is_hung_and_every_rank_says_where_it_is(start):
    node = start("--module", "busy", "stage1", "--nproc", "2", "--stall-seconds", "5", "--hang", "1")

    _, said = node.communicate(timeout=300)

    assert node.returncode == 138
    assert "no step began for" in said
    assert "rank 0 in all_reduce (" in said and "rank 1 in never_ends (busy.py:" in said


@pytest.mark.slow
def test_a_model_may_take_longer_to_write_than_a_step_may_take(start):
    arguments = ("stage1", "--nproc", "2", "--stall-seconds", "3", "--steps", "20", "--writing", "9")

    node = start("--module", "busy", *arguments)

    _, said = node.communicate(timeout=300)
    assert node.returncode == 0, said


@pytest.mark.slow
@pytest.mark.parametrize("saving", ["0", "12"])
def test_a_node_that_is_done_does_not_alarm_one_that_still_saves(start, saving):
    variables = operator_variables(number_of_nodes=2)
    arguments = ("--module", "busy", "stage1", "--silence-seconds", "4", "--steps", "20", "--saving", saving)

    nodes = [start(*arguments, **variables), start(*arguments, **of_another_node(variables))]

    ends = [node.communicate(timeout=300)[1] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0]
    assert "launch: error" not in "".join(ends)
    assert "Exception raised from" not in "".join(ends)


def test_a_rank_of_before_the_group_grew_is_forgotten(tmp_path):
    write = "import sys; from pathlib import Path; from training.launching.heartbeats import HeartbeatWriter"
    write += "; HeartbeatWriter(Path(sys.argv[1]), 2)"
    subprocess.run([sys.executable, "-c", write, str(tmp_path)], check=True)
    assert [beat.rank for beat in read_heartbeats(tmp_path)] == [2]

    # Its successor has another rank.
    HeartbeatWriter(tmp_path, 3)

    assert [beat.rank for beat in read_heartbeats(tmp_path)] == [3]


def test_a_process_that_watched_others_can_run_a_stage_itself_afterwards():
    with watched("", Patience(), end=os._exit):
        assert HeartbeatWriter.started() is not None

    assert HeartbeatWriter.started() is None
