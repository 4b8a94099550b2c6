"""Laws of the demo's accounts: whose memory counts, and which run's time stands beside a model's figures."""

import json
import logging
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import psutil
import pytest

from training.commands.demo import Cost, Demo, MemoryWatch, summarize
from training.commands.metrics_table import table
from training.params import load_params
from training.registry.gates import numbers

FLOORS = load_params(Path(__file__).parents[3] / "params.yaml").promote.floors
MEBIBYTE = 1 << 20
STAGES = ("backbones", "stage1", "stage2", "stage3")


@pytest.fixture
def metrics():
    """Figures that reach every floor exactly."""
    found = {}
    for name, must in numbers(FLOORS).items():
        group, _, part = name.partition(".")
        if part:
            found.setdefault(group, {})[part] = must
        else:
            found[group] = must
    return found


def pointers(weights="aa", seconds=10.0):
    return [{"stage": stage, "seconds": seconds, "weights_sha256": f"{stage}-{weights}"} for stage in STAGES]


def test_memory_of_children_counts_and_is_remembered():
    alone = MemoryWatch()
    alone.start()
    watch = MemoryWatch()
    watch.start()
    code = f"kept = bytearray(b'x' * {300 * MEBIBYTE}); import time; time.sleep(2.5)"
    before = alone.stop()

    subprocess.run([sys.executable, "-c", code], check=True)

    assert watch.stop() - before > 250 * MEBIBYTE


def test_pages_are_walked_only_when_more_memory_is_resident_than_before(monkeypatch):
    walks, walk = [], psutil.Process.memory_full_info
    monkeypatch.setattr(psutil.Process, "memory_full_info", lambda self: walks.append(self) or walk(self))
    watch = MemoryWatch()
    watch.look()
    first = len(walks)

    watch.look()
    assert len(walks) == first > 0

    kept = bytearray(b"x" * 100 * MEBIBYTE)
    watch.look()
    assert len(walks) == 2 * first
    del kept


def test_training_time_is_the_sum_of_the_stages(metrics):
    summary = summarize(metrics, pointers(seconds=10.04), Cost(100.0, 7, "c0ffee"), {})

    assert summary["seconds"]["train"] == 40.2
    assert summary["seconds"]["total"] == 100.0
    assert summary["peak_rss_bytes"] == 7
    assert summary["commit"] == "c0ffee"


def test_a_run_that_made_no_new_model_leaves_time_memory_and_commit_alone(metrics):
    first = summarize(metrics, pointers(), Cost(100.0, 7, "c0ffee"), {})

    again = summarize(metrics, pointers(), Cost(9.0, 3, "decaf"), deepcopy(first))
    other = summarize(metrics, pointers("bb"), Cost(9.0, 3, "decaf"), deepcopy(first))

    assert again == first
    assert other["seconds"]["total"] == 9.0
    assert other["commit"] == "decaf"


def test_new_figures_of_the_same_model_replace_the_old_ones(metrics):
    first = summarize(metrics, pointers(), Cost(100.0, 7, "c0ffee"), {})
    metrics["draw"]["all_right"] = 0.5

    again = summarize(metrics, pointers(), Cost(9.0, 3, "decaf"), deepcopy(first))

    assert again["draw"]["all_right"] == 0.5
    assert again["seconds"] == first["seconds"]


def test_every_step_is_announced_and_the_one_that_fails_is_named(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO)

    with pytest.raises(ValueError, match="the demo stopped at data, which ended with exit code"):
        Demo(tmp_path / "out", "Draw a red seven.", "sqlite:///mlflow.db").run()
    assert "step 1 of 5: fetch the raw data" in caplog.text
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("uri", "compare"),
    [
        ("sqlite:///mlflow.db", "mlflow server --backend-store-uri sqlite:///mlflow.db"),
        ("postgresql://ada:secret@db/mlflow", "mlflow server --backend-store-uri postgresql://db/mlflow"),
        ("http://ada:secret@mlflow:5000", "http://mlflow:5000"),
    ],
)
def test_the_last_line_says_where_runs_are_compared_and_no_password(tmp_path, uri, compare):
    demo = Demo(tmp_path, "Draw a red seven.", uri)
    demo.reply = {"text": "Here.", "images": []}

    assert demo.closing_words()[-1] == f"compare:  {compare}"


def test_every_step_is_told_where_mlflow_is_but_not_in_its_arguments(tmp_path, monkeypatch):
    steps = []
    monkeypatch.setattr("training.commands.demo.DVC", (sys.executable, "-c", ""))
    monkeypatch.setattr("training.commands.demo.VARGPT", (sys.executable, "-c", "raise SystemExit(3)"))
    run = subprocess.run
    monkeypatch.setattr(
        subprocess,
        "run",
        lambda command, **options: steps.append((command, options)) or run(command, **options),
    )

    with pytest.raises(ValueError, match="stopped at promote, which ended with exit code 3"):
        Demo(tmp_path / "out", "Draw a red seven.", "http://ada:secret@mlflow:5000").run()
    for command, options in steps:
        assert options["env"]["MLFLOW_TRACKING_URI"] == "http://ada:secret@mlflow:5000"
        assert "secret" not in " ".join(command)
    assert len(steps) == 3


def test_a_model_that_misses_a_floor_answers_as_the_challenger(tmp_path, monkeypatch):
    steps = []
    monkeypatch.setattr("training.commands.demo.DVC", (sys.executable, "-c", ""))
    said = json.dumps({"is_champion": False, "report": "a gate is closed"})
    program = f"import sys; sys.argv[1] == 'promote' or sys.exit(5); print({said!r}); sys.exit(1)"
    monkeypatch.setattr("training.commands.demo.VARGPT", (sys.executable, "-c", program))
    run = subprocess.run
    monkeypatch.setattr(
        subprocess, "run", lambda command, **options: steps.append(command) or run(command, **options)
    )
    demo = Demo(tmp_path / "out", "Draw a red seven.", "http://mlflow:5000")

    with pytest.raises(ValueError, match="stopped at package, which ended with exit code 5"):
        demo.run()

    assert steps[-1][-2:] == ("--model-uri", "models:/vargpt@challenger")
    demo.reply = {"text": "Here.", "images": []}
    assert "the challenger, since a gate is closed" in demo.closing_words()[1]


def test_a_fault_of_promote_is_not_taken_for_a_closed_gate(tmp_path, monkeypatch):
    monkeypatch.setattr("training.commands.demo.DVC", (sys.executable, "-c", ""))
    monkeypatch.setattr("training.commands.demo.VARGPT", (sys.executable, "-c", "raise KeyError"))

    with pytest.raises(ValueError, match="stopped at promote, which ended with exit code 1"):
        Demo(tmp_path / "out", "Draw a red seven.", "http://mlflow:5000").run()


def test_the_table_marks_every_figure_that_misses_its_target_and_no_other(metrics):
    assert "*" not in table(metrics, FLOORS)

    metrics["draw"] |= {"all_right": 0.93, "frechet_ratio": 2.6, "unseen": None}

    missed = [line.split()[0] for line in table(metrics, FLOORS).splitlines() if line.endswith("*")]
    assert missed == ["draw.all_right", "draw.unseen", "draw.frechet_ratio"]
