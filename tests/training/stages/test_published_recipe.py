"""Laws of the published recipe: all its options at once train, publish, and are repeated and replayed."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from model.checkpoint import load_model
from tests.training.volume import ROOT, write_params, write_volume
from training.data.prepared_data import DataFolders, index_datasets
from training.params import load_params
from training.registry.stage_folders import StageFolders
from training.runs.replay import replay
from training.runs.rerun import rerun

# Of the published recipe all is taken but what decides how large and how long.
SMALL = {
    "steps": 6,
    "batch": 4,
    "micro_batch": 2,
    "warmup": 2,
    "checkpoint_every": 2,
    "validate_every": 2,
    "max_tokens": 256,
    "pack_tokens": 256,
    "loader_workers": 1,
}
HELD_OUT = 0.2
VALIDATED = [2, 4, 6]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with params.yaml, indexed data, backbones, and the codes of what stage 1 draws."""
    folder = tmp_path_factory.mktemp("published")
    stage = load_params(ROOT / "params.yaml", "7b").stage1.model_dump()
    small = {key: value for key, value in stage.items() if key != "mixture"} | SMALL
    params_file = write_params(folder, **small)
    values = yaml.safe_load(params_file.read_text())
    values["data"]["held_out"] = HELD_OUT
    params_file.write_text(yaml.safe_dump(values))
    write_volume(folder)
    params = load_params(params_file, "smoke")
    _, processor = load_model(folder / "outputs/backbones/model")
    # An index knows its files by the paths that it was given: relative ones, as the pipeline has them.
    with contextlib.chdir(folder):
        index_datasets(params.stage1.mixture, DataFolders(Path(), Path("outputs/index")), processor, 1, 0.0)
    run(folder, "training.commands", "data", "encode", "--size", "smoke")
    return folder


def run(folder, *arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.fixture(scope="module")
def train(prepared, tmp_path_factory, _empty_mlflow_database):
    """Trains under an engine with so many processes, once: the folder, where MLflow is, and the run."""
    made = {}

    def trained(engine, processes):
        if (engine, processes) not in made:
            parent = tmp_path_factory.mktemp(f"{engine}-{processes}")
            folder = shutil.copytree(prepared, parent / "volume")
            values = yaml.safe_load((folder / "params.yaml").read_text())
            values["stage1"]["engine"] = engine
            (folder / "params.yaml").write_text(yaml.safe_dump(values))
            uri = f"sqlite:///{shutil.copy(_empty_mlflow_database, parent / 'mlflow.db')}"
            options = ("stage1", "--size", "smoke", "--nproc", str(processes), "--tracking-uri", uri)
            run(folder, "training.launching", *options)
            pointer = json.loads((folder / "artifacts/stage1.json").read_text())
            made[engine, processes] = folder, uri, pointer
        return made[engine, processes]

    return trained


def validation_of(uri, run_id, name="image"):
    history = MlflowClient(uri).get_metric_history(run_id, f"validation/{name}")
    return {metric.step: metric.value for metric in history}


FOLDERS = StageFolders("rerun", Path("prepared"), Path("outputs"), Path("data.dvc"))
ENGINES = pytest.mark.parametrize(("engine", "processes"), [("ddp", 1), ("zero2", 2)])


@pytest.mark.slow
@ENGINES
def test_all_options_together_train_publish_and_are_repeated_bit_for_bit(train, engine, processes):
    folder, uri, pointer = train(engine, processes)
    with contextlib.chdir(folder):
        found = rerun(pointer["run_id"], uri, FOLDERS, any_code=True)
    assert found.is_identical and found.weights_sha256 == pointer["weights_sha256"]


@pytest.mark.slow
@ENGINES
def test_a_step_of_packed_samples_with_cached_codes_is_replayed_sample_by_sample(train, engine, processes):
    folder, uri, pointer = train(engine, processes)
    with contextlib.chdir(folder):
        found = replay(pointer["run_id"], 3, uri, FOLDERS)
    assert len(found.losses) == SMALL["batch"]
    assert all(losses["image"] > 0 for losses in found.losses.values())


@pytest.mark.slow
@ENGINES
def test_what_is_held_out_is_measured_as_often_as_the_recipe_says(train, engine, processes):
    _, uri, pointer = train(engine, processes)
    losses = validation_of(uri, pointer["run_id"])
    assert list(losses) == VALIDATED
    # Measured on weights that have moved in between, on the same samples.
    assert losses[6] < losses[2]


@pytest.mark.slow
@ENGINES
def test_a_run_says_what_deepspeed_was_told(train, engine, processes):
    _, uri, pointer = train(engine, processes)
    tags = MlflowClient(uri).get_run(pointer["run_id"]).data.tags

    told = json.loads(tags.get("vargpt.deepspeed", "{}"))

    assert told.get("zero_optimization", {}).get("stage") == (2 if engine == "zero2" else None)


@pytest.mark.slow
def test_one_and_two_processes_validate_on_the_same_samples(train):
    alone, shared = (
        validation_of(uri, pointer["run_id"]) for _, uri, pointer in (train("ddp", 1), train("zero2", 2))
    )
    assert shared == pytest.approx(alone, abs=1e-5)
