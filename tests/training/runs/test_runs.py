"""Laws of recorded runs: what MLflow keeps is enough to repeat a run bit for bit, or one of its steps."""

import json
import math

import pytest
from mlflow import MlflowClient

from model.errors import UserError
from tests.training.volume import write_params, write_volume
from training.launching.stage_process import main
from training.registry.stage_folders import StageFolders
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
