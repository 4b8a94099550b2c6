"""Laws of what `dvc repro` starts: as many processes here as params.yaml says, and promotion on a cluster."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from training.commands.cluster import (
    LOCALLY,
    SHARED,
    _evaluate_and_release,
    _num_processes,
    local_command,
)

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("stage", LOCALLY)
def test_one_process_runs_a_stage_as_it_always_did(stage):
    assert local_command(stage, 1) == list(LOCALLY[stage])


@pytest.mark.parametrize("stage", [stage for stage in LOCALLY if stage not in SHARED])
def test_what_one_process_does_stays_with_one(stage):
    assert local_command(stage, 8) == list(LOCALLY[stage])


def test_several_processes_train_a_stage_together():
    assert local_command("stage2", 8) == ["training.launching", "stage2", "--nproc", "8"]


def test_auto_is_one_process_for_each_gpu_or_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert _num_processes("auto") == 8 and _num_processes(2) == 2

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert _num_processes("auto") == 1


@pytest.mark.parametrize("value", ["0", "many"])
def test_a_number_of_processes_that_is_none_is_refused_by_name(tmp_path, value):
    text = (ROOT / "params.yaml").read_text().replace("processes: auto", f"processes: {value}", 1)
    (tmp_path / "params.yaml").write_text(text)

    command = [sys.executable, "-m", "training.commands", "run", "stage1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert done.returncode == 2
    assert "processes" in done.stderr


@pytest.mark.slow
def test_two_processes_encode_what_there_is_and_write_one_summary(tmp_path):
    """No stage of size smoke has cached codes, which both have to find out."""
    (tmp_path / "params.yaml").write_text(
        (ROOT / "params.yaml").read_text().replace("processes: auto", "processes: 2", 1)
    )

    command = [sys.executable, "-m", "training.commands", "run", "encode", "--size", "smoke"]
    subprocess.run(command, cwd=tmp_path, check=True)

    assert json.loads((tmp_path / "artifacts" / "codes.json").read_text()) == {"codes": None}


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ({}, 0),
        # Gates are closed: the model is evaluated.
        ({"release": 2}, 0),
        ({"release": 138}, 138),
        ({"evaluate": 2}, 2),
    ],
)
def test_the_pipeline_on_a_cluster_ends_with_promotion(monkeypatch, codes, expected):
    ran = []

    def submit(command, check):
        stage = command[command.index("submit") + 1]
        ran.append(stage)
        return subprocess.CompletedProcess(command, codes.get(stage, 0))

    monkeypatch.setattr(subprocess, "run", submit)

    assert _evaluate_and_release(["--params", "params.yaml"]) == expected
    assert ran == (["evaluate"] if "evaluate" in codes else ["evaluate", "release"])
