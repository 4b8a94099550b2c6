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

from training.params import load_params
from training.params_file import write_resolved

ROOT = Path(__file__).parents[1]
PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
# Where the code of a stage begins that decides what it makes.
DECIDES = {
    "prepare": "training.digits.prepare",
    "backbones": "training.backbones.build",
    "encode": "training.data.code_encoding",
    "stage1": "training.stages.run",
    "stage2": "training.stages.run",
    "stage3": "training.stages.run",
    "evaluate": "training.evaluation.evaluate",
}
# They tell, keep and compare; what they decide (parameters, hashes) is followed beside them.
BOOKKEEPING = {
    "training.tracking",
    "training.registry",
    "training.planning",
    "training.checkpoints",
    "training.params",
    "training.params_file",
    "training.errors",
    "training.run_context",
    "training.parent_death",
    # Drawing shows what a stage has learned; only evaluation measures by it.
    "model.generation",
}
HASHED = "artifacts/code.json"


def imported(module):
    """Modules of ours that a module imports, wherever in it."""
    for node in ast.walk(ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("training", "model"):
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from [name for name in inner if is_module(name)] or [node.module]


def is_module(name):
    return (ROOT / f"{name.replace('.', '/')}.py").is_file()


def room_of(module):
    package, room, *inner = module.split(".")
    return f"{package}.{room}" if inner or package == "training" else f"{package}.network"


def rooms_reached(module):
    """Rooms of a module and of all that it imports, directly or not, bookkeeping left out."""
    seen, waiting = set(), [module]
    while waiting:
        module = waiting.pop()
        if module not in seen and room_of(module) not in BOOKKEEPING:
            seen.add(module)
            waiting += imported(module)
    return {room_of(module) for module in seen}


def params_of(stage, file):
    """Keys of a file that a stage follows."""
    return {
        key for entry in PIPELINE[stage]["params"] if isinstance(entry, dict) for key in entry.get(file, ())
    }


@pytest.mark.parametrize("stage", DECIDES)
def test_a_stage_follows_the_rooms_that_decide_what_it_makes_and_no_others(stage):
    followed = params_of(stage, HASHED)

    if stage == "evaluate":
        followed = followed - {"model"} | {"model.network", "model.generation"}
        assert followed == rooms_reached(DECIDES[stage]) | {"model.generation"}
    else:
        assert followed == rooms_reached(DECIDES[stage])


def test_every_parameter_is_followed_by_the_stage_that_reads_it():
    sections = set(load_params(ROOT / "params.yaml").model_dump())
    followed = {stage: params_of(stage, "artifacts/params.json") for stage in DECIDES}

    # Neither `joint` nor promotion is a stage of the pipeline, and where stages run decides nothing.
    assert sections - set().union(*followed.values()) == {
        "joint",
        "promote",
        "launcher",
        "processes",
        "cluster",
    }
    for stage, names in followed.items():
        assert "size" in names and (stage in ("encode", "evaluate") or stage in names)


def test_a_stage_follows_the_parameters_of_its_size_alone(tmp_path):
    write_resolved(ROOT / "params.yaml", tmp_path / "params.json")
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    values["smoke"]["stage1"]["steps"] += 1
    values["7b"]["stage1"]["steps"] += 1
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))

    write_resolved(tmp_path / "params.yaml", tmp_path / "other.json")

    resolved = json.loads((tmp_path / "params.json").read_text())
    assert json.loads((tmp_path / "other.json").read_text()) == resolved
    assert resolved["stage1"]["micro_batch"] == values["stage_defaults"]["micro_batch"]


def test_each_stage_starts_from_the_weights_of_the_one_before():
    chain = ["backbones", "stage1", "stage2", "stage3"]
    for before, after in zip(chain, [*chain[1:], "evaluate"], strict=True):
        assert params_of(after, f"artifacts/{before}.json") == {"weights_sha256"}
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
    run(folder, "dvc", "pull", "-q")
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

    assert summary["scenes/train"]["records"] == smoke.scenes
    assert summary["drawing/test"]["records"] == smoke.test


@pytest.mark.slow
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
    summary = json.loads((workspace / "prepared" / "summary.json").read_text())
    assert summary["understanding/train"]["records"] == 20
