"""Laws of recorded runs: what MLflow keeps is enough to repeat a run bit for bit, or one of its steps."""

import json
import math
import subprocess

import pytest
from mlflow import MlflowClient

from model.errors import UserError
from tests.training.volume import ROOT, write_params, write_volume
from training.launching.stage_process import main
from training.params import load_params
from training.registry.stage_folders import StageFolders
from training.runs.recorded_run import RecordedRun, recorded_run
from training.runs.replay import replay
from training.runs.rerun import rerun

SHORT = {"steps": 5, "batch": 4, "lr": 2e-3, "warmup": 2, "checkpoint_every": 2, "muon_lr": 0.0}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder in which stage 1 has run, and the run's id in MLflow."""
    folder = tmp_path_factory.mktemp("recorded")
    write_params(folder, **SHORT)
    write_volume(folder)
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["stage1", "--size", "smoke", "--tracking-uri", uri]) == 0
    pointer = json.loads((folder / "artifacts/stage1.json").read_text())
    return folder, uri, pointer["run_id"]


def folders_of(folder):
    return StageFolders("rerun", folder / "prepared", folder / "outputs", folder / "data.dvc")


@pytest.mark.slow
def test_a_run_repeated_from_its_record_publishes_the_same_bytes(trained):
    folder, uri, run = trained
    (folder / "params.yaml").write_text("size: smoke\nspeed: 3\n")
    found = rerun(run, uri, folders_of(folder), any_code=True)
    assert found.is_identical
    assert (
        found.weights_sha256 == json.loads((folder / "artifacts/stage1.json").read_text())["weights_sha256"]
    )


@pytest.mark.slow
def test_a_run_tells_speed_norms_and_times_of_every_part_that_learns(trained):
    _, uri, run = trained
    told = MlflowClient(uri).get_run(run).data.metrics
    parts = {"generation_input_projector", "generation_output_projector", "visual_decoder"}
    assert {f"gradient_norm_of/{part}" for part in parts} <= told.keys()
    squares = sum(told[f"gradient_norm_of/{part}"] ** 2 for part in parts)
    assert squares == pytest.approx(told["gradient_norm"] ** 2, rel=1e-4)
    assert 0 < told["data_seconds"] < told["step_seconds"]
    flops = {name: value for name, value in told.items() if name.startswith("teraflops/")}
    assert (
        flops.pop("teraflops/all") == pytest.approx(sum(flops.values()))
        and "teraflops/language_model" in flops
    )
    assert {"samples_per_second", "positions_per_second", "drawings_per_second"} <= told.keys()


@pytest.mark.slow
def test_the_samples_of_a_step_are_told_with_their_losses(trained):
    folder, uri, run = trained
    found = replay(run, 0, uri, folders_of(folder))
    assert len(found.losses) == SHORT["batch"] and found.weights_of_step == 0
    client = MlflowClient(uri)
    [first] = [
        metric for metric in client.get_metric_history(run, "loss/image") if metric.step == SHORT["steps"]
    ]
    for losses in found.losses.values():
        # Untrained: near the logarithm of the number of codes, as the run's own were.
        assert abs(losses["image"] - first.value) < 0.1 * math.log(256)
    with pytest.raises(UserError, match="step must be 0 to 4, got 5"):
        replay(run, 5, uri, folders_of(folder))


@pytest.mark.slow
def test_other_starting_weights_than_the_run_had_are_refused(trained):
    folder, uri, run = trained
    manifest = folder / "outputs/backbones/model/manifest.json"
    content = manifest.read_text()
    manifest.write_text(content.replace("config.json", "other.json"))
    for repeat in (
        lambda: rerun(run, uri, folders_of(folder), True),
        lambda: replay(run, 0, uri, folders_of(folder)),
    ):
        with pytest.raises(UserError, match="weights of backbones here are"):
            repeat()
    manifest.write_text(content)


@pytest.mark.slow
def test_a_run_that_mlflow_does_not_know_is_named(trained):
    folder, uri, _ = trained
    with pytest.raises(UserError, match="knows no run 'nobody'"):
        rerun("nobody", uri, folders_of(folder), any_code=True)


def test_a_run_that_is_not_known_is_told_without_the_password_of_mlflow(mlflow_server):
    with pytest.raises(UserError, match=f"MLflow at {mlflow_server} knows no run 'nobody'"):
        recorded_run("nobody", mlflow_server.replace("://", "://ada:secret@"))


def test_a_server_that_cannot_be_reached_is_one_sentence_without_its_password():
    with pytest.raises(ConnectionError, match=r"^MLflow at http://127\.0\.0\.1:9 cannot be read: ") as raised:
        recorded_run("nobody", "http://ada:secret@127.0.0.1:9")

    assert "secret" not in str(raised.value) and "\n" not in str(raised.value)


def test_a_rerun_is_told_where_mlflow_is_but_not_in_its_arguments(tmp_path, monkeypatch):
    params = load_params(ROOT / "params.yaml", "smoke")
    recorded = RecordedRun("run-1", "stage1", params, 1, None, "", "backbones", "", "weights")
    uri, begun = "http://ada:secret@mlflow:5000", []

    def run(command, env, cwd, check):
        begun.append((command, env["MLFLOW_TRACKING_URI"]))
        raise subprocess.CalledProcessError(2, command)

    monkeypatch.setattr("training.runs.rerun.recorded_run", lambda *_: recorded)
    monkeypatch.setattr("training.runs.rerun._refuse_other_inputs", lambda *_: None)
    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(subprocess.CalledProcessError) as raised:
        rerun("run-1", uri, folders_of(tmp_path), any_code=True)

    assert "secret" not in str(raised.value)
    [(command, address)] = begun
    assert address == uri and "secret" not in " ".join(command)
