"""Laws of the training loop: it can be killed at any step and ends with the weights it would have had."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from tests.training.volume import ROOT, write_params, write_volume
from training.launching.stage_process import main
from training.params import load_params
from training.registry.stage_folders import StageFolders

STEPS = 8
SHORT = {"steps": STEPS, "batch": 8, "lr": 2e-3, "warmup": 2, "checkpoint_every": 2}
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "MLFLOW_DISABLE_TELEMETRY": "true"}


@pytest.fixture(scope="module")
def volume(tmp_path_factory):
    """A folder that a stage can run in; tests copy it."""
    folder = tmp_path_factory.mktemp("volume")
    write_params(folder, **SHORT)
    write_volume(folder)
    return folder


@pytest.fixture
def place(volume, tmp_path):
    return shutil.copytree(volume, tmp_path / "volume")


def start(place, *options, module="training.launching.stage_process", stage="stage1"):
    # Without a database: the spool alone is enough here, and MLflow takes seconds.
    command = [sys.executable, "-m", module, stage, "--size", "smoke", "--tracking-uri", "http://127.0.0.1:9"]
    environment = {**os.environ, **ENVIRONMENT}
    return subprocess.Popen(
        [*command, *options], cwd=place, env=environment, stderr=subprocess.PIPE, text=True
    )


def finish(process, code=0):
    _, errors = process.communicate(timeout=240)
    assert process.returncode == code, errors
    return errors


def weights(place):
    return load_file(place / "outputs/stage1/model/model.safetensors")


def committed(place):
    names = (marker.parent.name for marker in place.glob("outputs/stage1/*/step_*/COMPLETE"))
    return sorted(int(name[5:]) for name in names if name[5:].isdecimal())


def wait_for_step(place, step):
    deadline = time.monotonic() + 120
    while max(committed(place), default=0) < step:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture(scope="module")
def whole(volume, tmp_path_factory):
    """The folder of a run that nothing disturbed."""
    place = shutil.copytree(volume, tmp_path_factory.mktemp("whole") / "volume")
    finish(start(place))
    return place


@pytest.fixture(scope="module")
def uninterrupted(whole):
    return weights(whole)


def test_a_run_killed_twice_ends_with_the_same_weights_bit_for_bit(place, uninterrupted):
    for step in (2, 4):
        process = start(place)
        wait_for_step(place, step)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert not (place / "artifacts/stage1.json").exists()
    finish(start(place))
    assert same(weights(place), uninterrupted)
    assert not committed(place), "checkpoints have served once the model is published"


def test_the_published_model_names_the_weights_it_started_from(whole):
    record = json.loads((whole / "outputs/stage1/model/lineage.json").read_text())
    started_from = json.loads((whole / "artifacts/backbones.json").read_text())
    assert (record["stage"], record["parent_stage"]) == ("stage1", "backbones")
    assert record["parent_weights_sha256"] == started_from["weights_sha256"]
    [spool] = whole.glob("spool/*.jsonl")
    start = json.loads(spool.read_text().splitlines()[0])
    assert start["params"]["lr"] == "0.002" and start["params"]["stage"] == "stage1"


def test_only_what_the_stage_names_has_learned(place, uninterrupted):
    before = load_file(place / "outputs/backbones/model/model.safetensors")
    changed = {key for key in before if not torch.equal(before[key], uninterrupted[key])}
    allowed = ("generation_input_projector", "generation_output_projector", "visual_decoder.start_embedding")
    assert changed and all(key.startswith(allowed) for key in changed)


def test_a_run_stops_with_143_when_asked_and_goes_on_without_a_checkpoint_that_was_damaged(
    place, uninterrupted
):
    process = start(place)
    wait_for_step(place, 4)
    process.send_signal(signal.SIGTERM)
    assert "stopped after" in finish(process, 143)
    newest = next(place.glob(f"outputs/stage1/*/step_{max(committed(place))}"))
    content = bytearray((newest / "tensors.safetensors").read_bytes())
    content[len(content) // 2] ^= 1
    (newest / "tensors.safetensors").write_bytes(content)
    errors = finish(start(place))
    assert newest.name in errors and "damaged" in errors
    assert same(weights(place), uninterrupted)


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(place, tmp_path):
    # Muon turns a direction that is nothing but rounding into a whole step, so AdamW it is.
    write_params(place, **SHORT, muon_lr=0.0)
    alone = shutil.copytree(place, tmp_path / "alone")
    finish(start(alone))
    finish(start(place, "--nproc", "2", module="training.launching"))
    both = weights(place)
    for key, value in weights(alone).items():
        torch.testing.assert_close(both[key], value, rtol=0, atol=2e-3, msg=key)


def test_what_mlflow_could_not_take_waits_in_the_spool(whole):
    [spool] = whole.glob("spool/*.jsonl")
    kinds = {json.loads(line)["kind"] for line in spool.read_text().splitlines()}
    assert {"start", "metrics", "dataset", "image", "finish"} <= kinds


@pytest.mark.parametrize(
    ("damage", "names"),
    [
        (lambda place: shutil.rmtree(place / "outputs/backbones"), "backbones"),
        (lambda place: (place / "outputs/backbones/model/config.json").unlink(), "config.json"),
        (lambda place: (place / "prepared/drawing/train.json").unlink(), "drawing/train.json"),
        (lambda place: (place / "params.yaml").write_text("size: smoke\nspeed: 3\n"), "speed"),
        (lambda place: (place / "data.dvc").unlink(), "data.dvc"),
    ],
)
def test_what_the_user_must_mend_is_named_with_exit_code_2(place, damage, names, monkeypatch, caplog):
    damage(place)
    monkeypatch.chdir(place)
    with caplog.at_level(logging.ERROR, "training.launching.stage_process"):
        assert main(["stage1", "--size", "smoke"]) == 2
    [record] = caplog.records
    assert names in record.message and record.exc_info is None


def test_checkpoints_of_another_recipe_start_or_data_are_not_continued(volume):
    place = StageFolders("stage1", volume / "prepared", volume / "outputs", volume / "data.dvc")
    params = load_params(volume / "params.yaml", "smoke")
    other = params.model_copy(update={"stage1": params.stage1.model_copy(update={"lr": 1e-4})})
    names = {place.identity(params, "a"), place.identity(other, "a"), place.identity(params, "b")}
    assert len(names) == 3
    assert place.identity(params, "a") in names
