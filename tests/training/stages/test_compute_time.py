"""Laws of compute time: a process that computes slowly is told from those that wait for it."""

import os
import re
import socket
import subprocess
import sys
import time

import pytest
import torch

from tests.training.stages.slow_rank import DELAY
from tests.training.volume import ROOT, write_params, write_volume
from training.stages import compute_time
from training.stages.compute_time import ComputeTime

SHORT = {"steps": 5, "batch": 4, "micro_batch": 1, "lr": 2e-3, "warmup": 2, "checkpoint_every": 5}


class Alone:
    """What is asked of an engine, by one process alone."""

    rank, world_size, device = 0, 1, torch.device("cpu")

    def __init__(self, shards_weights):
        self.shards_weights = shards_weights

    def total(self, values):
        return values


@pytest.mark.slow
def test_the_slow_one_of_two_processes_is_told_by_its_node(tmp_path):
    write_params(tmp_path, **SHORT)
    write_volume(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "training.launching", "stage1", "--nproc", "2", "--size", "smoke"]
    command += ["--module", "tests.training.stages.slow_rank", "--tracking-uri", "http://127.0.0.1:9"]
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "VARGPT_METRICS_PORT": port}

    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, **environment}, capture_output=True, text=True, timeout=400
    )

    assert done.returncode == 0, done.stderr
    found = re.findall(
        r'^vargpt_training_compute_seconds{rank="(\d)",stage="stage1"} (\S+)$',
        (tmp_path / "metrics.txt").read_text(),
        re.MULTILINE,
    )
    seconds = {rank: float(value) for rank, value in found}
    assert seconds.keys() == {"0", "1"}
    # Two micro-batches each; the first process waits for the second in every exchange of gradients.
    assert seconds["1"] > 2 * DELAY > seconds["0"]


def test_only_steps_that_are_recorded_are_measured():
    clock = ComputeTime(Alone(shards_weights=False))
    measured = []
    for is_recorded in (True, False, True):
        clock.begin(is_recorded)
        for _ in range(2):
            with clock.forward():
                time.sleep(0.02)
        time.sleep(0.05)
        measured.append(clock.by_rank())

    assert measured[1] == []
    assert all(0.04 <= seconds < 0.09 for [seconds] in (measured[0], measured[2]))


def test_where_weights_are_shared_a_product_stands_in_for_passes_that_wait(monkeypatch):
    monkeypatch.setattr(compute_time, "_multiply", lambda _: time.sleep(0.02))
    clock = ComputeTime(Alone(shards_weights=True))

    clock.begin(True)
    with clock.forward():
        time.sleep(0.2)

    assert 0.02 <= clock.by_rank()[0] < 0.1


def test_measuring_draws_no_random_number():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)

    ComputeTime(Alone(shards_weights=True)).begin(True)

    assert torch.equal(torch.rand(1), expected)
