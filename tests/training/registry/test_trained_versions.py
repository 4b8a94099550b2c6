"""Laws of what trainers register: a version for each publication, by address, in a model of their own."""

import re
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED

from model.errors import UserError
from model.manifest import manifest_sha256, verify
from tests.training.registry.candidates import METRICS, measured, published_model
from training.commands.options import MODEL_NAME
from training.registry.fetch import fetch
from training.registry.lineage import read_lineage
from training.registry.trained_versions import TRAINED_MODEL, TRAINED_TAG, WEIGHTS_TAG, track_trained
from training.registry.versions import register
from training.tracking.sender import sync_spools
from training.tracking.tracker import EXPERIMENT, open_tracker

pytestmark = pytest.mark.usefixtures("impatient")

ROOT = Path(__file__).parents[3]


def publish(uri: str | None, parent: Path, *folders: Path) -> str:
    """A finished run that has published these models, one after the other; our name for it."""
    tracker = open_tracker(uri, "tests", parent / "spool", is_rank_zero=True, system_seconds=60)
    run = tracker.start("stage3", {}, {})
    for folder in folders:
        track_trained(tracker, folder)
    tracker.finish(timeout_seconds=60)
    return run


def trained(uri: str, run: str) -> list[str]:
    client = MlflowClient(uri, uri)
    found = client.search_model_versions(f"name = '{TRAINED_MODEL}'")
    runs = {version.run_id: client.get_run(version.run_id).data.tags["vargpt.run"] for version in found}
    return sorted(str(version.version) for version in found if runs[version.run_id] == run)


def test_what_a_stage_published_is_a_version_that_reads_back_whole_and_no_weights_were_sent(
    mlflow_server, tmp_path
):
    folder = published_model(tmp_path, "one")

    [version] = trained(mlflow_server, publish(mlflow_server, tmp_path, folder))

    client, address = MlflowClient(mlflow_server, mlflow_server), f"models:/{TRAINED_MODEL}/{version}"
    source = client.get_model_version_download_uri(TRAINED_MODEL, version)
    sent = download_artifacts(artifact_uri=source, tracking_uri=mlflow_server, dst_path=str(tmp_path))
    assert not list(Path(sent).rglob("*.safetensors"))
    assert client.get_model_version(TRAINED_MODEL, version).tags[WEIGHTS_TAG] == manifest_sha256(folder)
    found = fetch(mlflow_server, address, tmp_path / "scratch")
    verify(found)
    assert read_lineage(found) == read_lineage(folder)
    assert (found / "model.safetensors").samefile(folder / "model.safetensors")


def test_a_publication_that_is_repeated_after_a_kill_is_one_version(mlflow_db, tmp_path):
    folder = published_model(tmp_path, "one")

    run = publish(mlflow_db, tmp_path, folder, folder)

    assert trained(mlflow_db, run) == ["1"]


def test_a_version_that_mlflow_was_away_for_is_made_by_sync(mlflow_db, tmp_path):
    folder = published_model(tmp_path, "one")
    run = publish(None, tmp_path, folder)

    report = sync_spools(tmp_path / "spool", mlflow_db)

    assert report.unsent == () and trained(mlflow_db, run) == ["1"]


def test_a_version_whose_stage_was_trained_anew_is_refused_with_both_hashes(mlflow_db, tmp_path):
    folder, later = published_model(tmp_path, "one"), published_model(tmp_path, "two")
    publish(mlflow_db, tmp_path, folder)
    before = manifest_sha256(folder)
    shutil.rmtree(folder)
    later.rename(folder)

    with pytest.raises(UserError, match=f"holds weights {manifest_sha256(folder)}.* says {before}"):
        fetch(mlflow_db, f"models:/{TRAINED_MODEL}/1", tmp_path / "scratch")


def test_an_account_that_may_not_write_the_model_loses_the_version_and_not_the_run(
    mlflow_db, tmp_path, monkeypatch, caplog
):
    def refuse(*_: object, **__: object) -> None:
        raise MlflowException("Permission denied", error_code=PERMISSION_DENIED)

    monkeypatch.setattr(MlflowClient, "create_model_version", refuse)

    run = publish(mlflow_db, tmp_path, published_model(tmp_path, "one"))

    assert trained(mlflow_db, run) == []
    assert MlflowClient(mlflow_db).search_runs(["1"])[0].info.status == "FINISHED"
    assert "refuses a model_version record" in caplog.text and "Permission denied" in caplog.text


def test_a_version_of_the_served_model_names_the_trained_version_it_was_made_from(mlflow_db, tmp_path):
    folder = published_model(tmp_path, "one")
    run = publish(mlflow_db, tmp_path, folder)

    version = register(mlflow_db, "vargpt", run, folder, measured(METRICS, folder), read_lineage(folder))

    tags = MlflowClient(mlflow_db, mlflow_db).get_model_version("vargpt", version).tags
    assert tags[TRAINED_TAG] == f"{TRAINED_MODEL}/1"
    # Weights of its own: what is served stays when the stage is trained anew.
    shutil.rmtree(folder)
    verify(fetch(mlflow_db, f"models:/vargpt/{version}", tmp_path / "scratch"))


def test_the_platform_lets_trainers_write_the_very_model_that_they_register():
    # The administrator's script runs in an image that has nothing of ours.
    accounts = (ROOT / "k8s" / "platform" / "mlflow" / "accounts.py").read_text()

    named = re.search(r'^MODEL, TRAINED_MODEL, EXPERIMENT = "(.+)", "(.+)", "(.+)"$', accounts, re.MULTILINE)

    assert named and named.groups() == (MODEL_NAME, TRAINED_MODEL, EXPERIMENT)
    assert 'grant(trainer, "registered_model", TRAINED_MODEL, "EDIT")' in accounts
