"""Laws of dvc.yaml: a stage depends on all code that decides what it makes, and only what changed is run."""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from training.params import load_params, plain

ROOT = Path(__file__).parents[1]
PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
LOOP = ("training/loop.py", "training/datasets.py", "training/stages.py")
DECIDES = {
    "prepare": ("training/prepare.py",),
    "backbones": ("training/backbones.py",),
    "stage1": LOOP,
    "stage2": LOOP,
    "stage3": LOOP,
    "evaluate": ("training/evaluate.py",),
}
# They read parameters and compare hashes and scores; what they decide is named beside them.
BOOKKEEPING = {"training/params.py", "training/lineage.py", "training/gates.py"}


def imported(path):
    """Files of `training` that a file imports, wherever in it."""
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("training."):
            yield node.module.replace(".", "/") + ".py"


def reached(files):
    """These files and all that they import, directly or not."""
    seen, waiting = set(), list(files)
    while waiting:
        path = waiting.pop()
        if path not in seen:
            seen.add(path)
            waiting += imported(path)
    return seen


@pytest.mark.parametrize("stage", DECIDES)
def test_a_stage_depends_on_the_code_that_decides_what_it_makes_and_on_no_other(stage):
    named = {dep for dep in PIPELINE[stage]["deps"] if dep.startswith("training/")}

    assert named == reached(DECIDES[stage]) - BOOKKEEPING
    assert stage == "prepare" or "model" in PIPELINE[stage]["deps"]


def test_every_parameter_is_followed_by_the_stage_that_reads_it():
    sections = set(plain(load_params(ROOT / "params.yaml")))
    followed = {name for stage in PIPELINE.values() for name in stage["params"]}

    assert sections - followed == {"joint", "promote"}  # neither is a stage of the pipeline
    for stage, facts in PIPELINE.items():
        assert "size" in facts["params"], stage
        if stage in sections:
            assert {stage, f"smoke.{stage}"} <= set(facts["params"])


def test_each_stage_starts_from_the_one_before():
    chain = ["backbones", "stage1", "stage2", "stage3"]
    for before, after in zip(chain, [*chain[1:], "evaluate"], strict=True):
        assert f"artifacts/{before}.json" in PIPELINE[after]["deps"]
        assert f"artifacts/{before}.json" in [next(iter(out)) for out in PIPELINE[before]["outs"]]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """What is committed or about to be, in a repository of its own, with data prepared by DVC once."""
    folder = tmp_path_factory.mktemp("workspace")
    for name in ("model", "training", ".dvc"):
        shutil.copytree(
            ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "tmp", "cache")
        )
    for name in ("data.dvc", "dvc.yaml", "pyproject.toml", ".dvcignore", ".gitignore"):
        shutil.copy(ROOT / name, folder)
    params = (ROOT / "params.yaml").read_text()
    (folder / "params.yaml").write_text(params.replace("size: tiny", "size: smoke", 1))
    for command in (["init", "-q"], ["add", "-A"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    vargpt(folder, "data", "restore")
    assert "Running stage 'prepare'" in repro(folder)
    return folder


def run(folder, *command):
    places = [str(Path(sys.executable).parent), os.environ["PATH"]]
    environment = {**os.environ, "PATH": os.pathsep.join(places), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def vargpt(folder, *arguments):
    return run(folder, "training.cli", *arguments)


def repro(folder):
    return run(folder, "dvc", "repro", "prepare")


def test_nothing_runs_twice_even_when_code_has_left_its_byte_code(workspace):
    (workspace / "model" / "__pycache__").mkdir(exist_ok=True)
    (workspace / "model" / "__pycache__" / "scales.cpython-311.pyc").write_bytes(b"code")

    assert "didn't change" in repro(workspace)
    before = json.loads(run(workspace, "dvc", "status", "--json"))
    changed = [str(change) for changes in before.values() for change in changes]
    assert not [text for text in changed if "__pycache__" in text]


def test_the_size_in_the_parameters_decides_how_much_is_made(workspace):
    summary = json.loads((workspace / "prepared" / "summary.json").read_text())
    smoke = load_params(ROOT / "params.yaml", "smoke").prepare

    assert summary["scenes/train"] == smoke.scenes
    assert summary["drawing/test"] == smoke.test


def test_a_changed_parameter_runs_the_stage_that_reads_it_and_no_picture_of_before_stays(workspace):
    path = workspace / "params.yaml"
    lines = path.read_text().splitlines()
    [place] = [number for number, line in enumerate(lines) if line.startswith("  prepare: {")]
    lines[place] = lines[place].replace("understanding: 200", "understanding: 20")
    path.write_text("\n".join(lines) + "\n")
    stray = workspace / "prepared" / "understanding" / "images" / "train-00100.png"
    assert stray.exists()

    assert "Running stage 'prepare'" in repro(workspace)
    assert not stray.exists()
    assert json.loads((workspace / "prepared" / "summary.json").read_text())["understanding/train"] == 20
