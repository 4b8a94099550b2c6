"""Laws of a run of a stage: killed at any step, it ends with the weights of a run that nothing disturbed."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time

import psutil
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
def unused_volume(tmp_path_factory):
    """A folder that a stage can run in; tests use copies of it."""
    folder = tmp_path_factory.mktemp("volume")
    write_params(folder, **SHORT)
    write_volume(folder)
    return folder


@pytest.fixture
def volume(unused_volume, tmp_path):
    return shutil.copytree(unused_volume, tmp_path / "volume")


def start(volume, *options, module="training.launching.stage_process", stage="stage1"):
    # An address that nobody answers: the spool is enough here, and MLflow's database takes seconds.
    command = [sys.executable, "-m", module, stage, "--size", "smoke", "--tracking-uri", "http://127.0.0.1:9"]
    environment = {**os.environ, **ENVIRONMENT}
    return subprocess.Popen(
        [*command, *options], cwd=volume, env=environment, stderr=subprocess.PIPE, text=True
    )


def finish(process, code=0):
    _, errors = process.communicate(timeout=240)
    assert process.returncode == code, errors
    return errors


def weights_of(volume):
    return load_file(volume / "outputs/stage1/model/model.safetensors")


def committed_steps(volume):
    names = (marker.parent.name for marker in volume.glob("outputs/stage1/*/step_*/COMPLETE"))
    return sorted(int(name[5:]) for name in names if name[5:].isdecimal())


def wait_for_step(volume, step):
    deadline = time.monotonic() + 120
    while max(committed_steps(volume), default=0) < step:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def are_equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture(scope="module")
def finished_volume(unused_volume, tmp_path_factory):
    """The folder of a run that nothing disturbed."""
    volume = shutil.copytree(unused_volume, tmp_path_factory.mktemp("undisturbed") / "volume")
    finish(start(volume))
    return volume


@pytest.fixture(scope="module")
def undisturbed_weights(finished_volume):
    return weights_of(finished_volume)


def test_a_run_killed_twice_ends_with_the_same_weights_bit_for_bit(volume, undisturbed_weights):
    for step in (2, 4):
        process = start(volume)
        wait_for_step(volume, step)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert not (volume / "artifacts/stage1.json").exists()
    finish(start(volume))
    assert are_equal(weights_of(volume), undisturbed_weights)
    assert not committed_steps(volume), "checkpoints are deleted once the model is published"
    lost = last_metrics(volume, "lost/")
    assert lost["lost/restarts"] == 2
    assert lost["lost/down_seconds"] > 0 and lost["lost/repeated_steps"] >= 0


def last_metrics(volume, prefix):
    """The last value of every metric of the newest run that begins so."""
    newest = max(volume.glob("spool/*.jsonl"), key=lambda path: path.stat().st_mtime)
    entries = [json.loads(line) for line in newest.read_text().splitlines()]
    values = {}
    for entry in entries:
        if entry["kind"] == "metrics":
            values |= {name: value for name, value in entry["values"].items() if name.startswith(prefix)}
    return values


def test_the_published_model_names_the_weights_it_started_from(finished_volume):
    record = json.loads((finished_volume / "outputs/stage1/model/lineage.json").read_text())
    started_from = json.loads((finished_volume / "artifacts/backbones.json").read_text())
    assert (record["stage"], record["parent_stage"]) == ("stage1", "backbones")
    assert record["parent_weights_sha256"] == started_from["weights_sha256"]
    [spool] = finished_volume.glob("spool/*.jsonl")
    start = json.loads(spool.read_text().splitlines()[0])
    assert start["params"]["lr"] == "0.002" and start["params"]["stage"] == "stage1"


def test_only_the_modules_of_the_stage_have_changed(volume, undisturbed_weights):
    before = load_file(volume / "outputs/backbones/model/model.safetensors")
    changed = {key for key in before if not torch.equal(before[key], undisturbed_weights[key])}
    allowed = ("generation_input_projector", "generation_output_projector", "visual_decoder.start_embedding")
    assert changed and all(key.startswith(allowed) for key in changed)


def test_a_run_stops_with_143_on_a_signal_and_resumes_without_a_checkpoint_that_was_damaged(
    volume, undisturbed_weights
):
    process = start(volume)
    wait_for_step(volume, 4)
    process.send_signal(signal.SIGTERM)
    assert "stopped after" in finish(process, 143)
    newest = next(volume.glob(f"outputs/stage1/*/step_{max(committed_steps(volume))}"))
    content = bytearray((newest / "part_00000.safetensors").read_bytes())
    content[len(content) // 2] ^= 1
    (newest / "part_00000.safetensors").write_bytes(content)
    errors = finish(start(volume))
    assert newest.name in errors and "damaged" in errors
    assert are_equal(weights_of(volume), undisturbed_weights)


def assert_two_processes_learn_what_one_learns(volume, tmp_path):
    one_process = shutil.copytree(volume, tmp_path / "one_process")
    finish(start(one_process))
    finish(start(volume, "--nproc", "2", module="training.launching"))
    two_processes = weights_of(volume)
    for key, value in weights_of(one_process).items():
        torch.testing.assert_close(two_processes[key], value, rtol=0, atol=2e-3, msg=key)


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(volume, tmp_path):
    # AdamW, as Muon turns a direction that is nothing but rounding into a full step.
    write_params(volume, **SHORT, muon_lr=0.0)
    assert_two_processes_learn_what_one_learns(volume, tmp_path)


@pytest.mark.slow
def test_processes_that_share_optimizer_states_draw_samples_with_averaged_weights_and_go_on(volume, tmp_path):
    write_params(volume, **SHORT, muon_lr=0.0, ema=0.9)
    one_process = shutil.copytree(volume, tmp_path / "one_process")
    finish(start(one_process))
    write_params(volume, **SHORT, muon_lr=0.0, ema=0.9, engine="zero2")
    finish(start(volume, "--nproc", "2", module="training.launching"))
    shared = weights_of(volume)
    for key, value in weights_of(one_process).items():
        torch.testing.assert_close(shared[key], value, rtol=0, atol=2e-3, msg=key)


@pytest.mark.slow
def test_a_process_without_drawings_in_its_batch_does_not_change_what_is_learned(volume, tmp_path):
    # Of two samples a step, one has a drawing and one has none, most of the time.
    mixed = {
        "batch": 2,
        "micro_batch": 1,
        "steps": 4,
        "mixture": [
            {"name": name, "path": f"prepared/{name}/train.json", "weight": 0.5}
            for name in ("drawing", "text")
        ],
        "muon_lr": 0.0,
    }
    write_params(volume, **SHORT | mixed)
    assert_two_processes_learn_what_one_learns(volume, tmp_path)


@pytest.mark.slow
def test_no_process_ends_before_the_pointer_is_there(volume):
    """An operator takes a job for finished, and ends the others, when one of its pods has ended."""
    # A disk that takes its time: writing waits until somebody reads.
    (volume / "artifacts").mkdir(exist_ok=True)
    slow = volume / "artifacts/stage1.tmp"
    os.mkfifo(slow)
    launcher = start(volume, "--nproc", "2", module="training.launching")
    deadline = time.monotonic() + 120
    while not (volume / "outputs/stage1/model").is_dir():
        assert time.monotonic() < deadline
        time.sleep(0.1)

    time.sleep(5)
    num_alive = len(psutil.Process(launcher.pid).children())
    pointer = json.loads(slow.read_text())

    assert (num_alive, pointer["stage"]) == (2, "stage1")
    finish(launcher)


def test_fewer_samples_than_processes_are_refused_at_the_start(volume):
    write_params(volume, **SHORT | {"batch": 1})
    errors = finish(start(volume, "--nproc", "2", module="training.launching"), 2)
    assert "stage1.batch 1 gives 2 processes no sample each" in errors


def test_all_processes_of_a_killed_launcher_die(volume):
    launcher = start(volume, "--nproc", "2", module="training.launching")
    wait_for_step(volume, 2)
    children = psutil.Process(launcher.pid).children(recursive=True)
    assert len(children) >= 2
    launcher.send_signal(signal.SIGKILL)
    launcher.wait()

    _, alive = psutil.wait_procs(children, timeout=5)
    assert not alive


def test_what_mlflow_could_not_take_waits_in_the_spool(finished_volume):
    [spool] = finished_volume.glob("spool/*.jsonl")
    kinds = {json.loads(line)["kind"] for line in spool.read_text().splitlines()}
    assert {"start", "metrics", "dataset", "image", "finish"} <= kinds


@pytest.mark.parametrize(
    ("damage", "names"),
    [
        (lambda volume: shutil.rmtree(volume / "outputs/backbones"), "backbones"),
        (lambda volume: (volume / "outputs/backbones/model/config.json").unlink(), "config.json"),
        (lambda volume: (volume / "prepared/drawing/train.json").unlink(), "drawing/train.json"),
        (lambda volume: (volume / "params.yaml").write_text("size: smoke\nspeed: 3\n"), "speed"),
        (lambda volume: (volume / "data.dvc").unlink(), "data.dvc"),
    ],
)
def test_what_the_user_must_mend_is_named_with_exit_code_2(volume, damage, names, monkeypatch, caplog):
    damage(volume)
    monkeypatch.chdir(volume)
    with caplog.at_level(logging.ERROR, "training.launching.stage_process"):
        assert main(["stage1", "--size", "smoke"]) == 2
    [record] = caplog.records
    assert names in record.message and record.exc_info is None


def test_checkpoints_of_other_parameters_start_or_data_are_not_continued(unused_volume):
    folders = folders_of(unused_volume)
    params = load_params(unused_volume / "params.yaml", "smoke")
    names = {
        folders.identity(params, "a", "d"),
        folders.identity(changed(params, lr=1e-4), "a", "d"),
        folders.identity(params, "b", "d"),
        folders.identity(params, "a", "e"),
    }
    assert len(names) == 4
    assert folders.identity(params, "a", "d") in names


def folders_of(volume):
    return StageFolders("stage1", volume / "prepared", volume / "outputs", volume / "data.dvc")


def changed(params, **stage1):
    return params.model_copy(update={"stage1": params.stage1.model_copy(update=stage1)})


def test_parameters_that_only_change_speed_may_change_between_two_starts(unused_volume):
    folders = folders_of(unused_volume)
    params = load_params(unused_volume / "params.yaml", "smoke")

    quicker = changed(params, micro_batch=1, checkpoint_every=3, max_skipped=1)
    assert folders.identity(quicker, "a", "d") == folders.identity(params, "a", "d")
    other = params.model_copy(update={"precision": "bf16"})
    assert folders.identity(other, "a", "d") == folders.identity(params, "a", "d")


@pytest.mark.slow
def test_checkpoints_that_are_not_continued_are_named(volume):
    process = start(volume)
    wait_for_step(volume, 2)
    process.send_signal(signal.SIGTERM)
    finish(process, 143)
    [left] = {path.parent for path in volume.glob("outputs/stage1/*/step_*")}
    write_params(volume, **SHORT | {"lr": 1e-3})

    assert f"{left.relative_to(volume)} is of other parameters, data or start: not continued" in finish(
        start(volume)
    )
