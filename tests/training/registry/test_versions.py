"""Laws of registration: the same weights are one version, figures are theirs, a published folder stays."""

import hashlib
import json
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts

from model.manifest import MANIFEST, manifest_sha256, verify
from tests.training.registry.candidates import (
    DATA,
    METRICS,
    candidate,
    changed,
    measured,
    published_model,
    tracked_run,
)
from training.registry.fetch import fetch
from training.registry.lineage import Lineage, read_lineage
from training.registry.versions import register


def contents(folder: Path) -> dict[str, tuple[str, int]]:
    return {
        path.name: (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in folder.iterdir()
    }


def test_the_registered_copy_names_run_and_version_and_the_published_folder_stays_as_it_is(
    mlflow_db, tmp_path
):
    folder = published_model(tmp_path, "one")
    run, before = tracked_run(mlflow_db, tmp_path), contents(folder)

    version = register(mlflow_db, "vargpt", run, folder, measured(METRICS, folder), read_lineage(folder))

    assert contents(folder) == before
    copy = fetch(mlflow_db, f"models:/vargpt/{version}", tmp_path)
    verify(copy)
    record = read_lineage(copy)
    assert (record.model_version, record.weights_sha256) == (version, manifest_sha256(folder))
    assert record.run_id == MlflowClient(mlflow_db, mlflow_db).get_model_version("vargpt", version).run_id


def test_registered_weights_are_the_published_file_and_are_fetched_without_a_copy(mlflow_db, tmp_path):
    folder = published_model(tmp_path, "one")
    run = tracked_run(mlflow_db, tmp_path)

    version = register(mlflow_db, "vargpt", run, folder, measured(METRICS, folder), read_lineage(folder))

    (tmp_path / "scratch").mkdir()
    found = fetch(mlflow_db, f"models:/vargpt/{version}", tmp_path / "scratch")
    assert (found / "model.safetensors").samefile(folder / "model.safetensors")
    assert not list((tmp_path / "scratch").iterdir())
    # A later training replaces its model's files, it never writes into them.
    (folder / "model.safetensors").unlink()
    verify(found)


def test_weights_on_a_volume_are_registered_by_their_address_and_read_where_they_lie(mlflow_server, tmp_path):
    folder, volume = published_model(tmp_path, "one"), tmp_path / "volume"
    run = tracked_run(mlflow_server, tmp_path)

    version = register(
        mlflow_server, "vargpt", run, folder, measured(METRICS, folder), read_lineage(folder), volume
    )

    address = f"models:/vargpt/{version}"
    source = MlflowClient(mlflow_server, mlflow_server).get_model_version_download_uri("vargpt", version)
    uploaded = download_artifacts(
        artifact_uri=source, tracking_uri=mlflow_server, dst_path=str(tmp_path / "uploaded")
    )
    assert not list(Path(uploaded).rglob("*.safetensors"))
    found = fetch(mlflow_server, address, scratch(tmp_path, "found"))
    verify(found)
    assert read_lineage(found).model_version == version
    kept = volume / manifest_sha256(folder)
    assert (found / "model.safetensors").samefile(kept / "model.safetensors")
    kept.rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"the weights lie in .*volume.*mount that volume"):
        fetch(mlflow_server, address, scratch(tmp_path, "missing"))


def test_other_weights_at_the_address_are_seen(mlflow_server, tmp_path):
    folder, other = published_model(tmp_path, "one"), published_model(tmp_path, "two")
    volume, run = tmp_path / "volume", tracked_run(mlflow_server, tmp_path)
    version = register(
        mlflow_server, "vargpt", run, folder, measured(METRICS, folder), read_lineage(folder), volume
    )

    kept = volume / manifest_sha256(folder)
    (kept / MANIFEST).write_bytes((other / MANIFEST).read_bytes())

    with pytest.raises(ValueError, match=r"holds weights .*, the registry says"):
        fetch(mlflow_server, f"models:/vargpt/{version}", scratch(tmp_path, "found"))


def scratch(tmp_path: Path, name: str) -> Path:
    """A new folder."""
    (tmp_path / name).mkdir()
    return tmp_path / name


def test_the_same_weights_of_a_run_are_one_version_with_the_newest_metrics(mlflow_db, tmp_path):
    assert candidate(mlflow_db, tmp_path, "one", METRICS) == "1"
    folder, client = tmp_path / "model-one", MlflowClient(mlflow_db, mlflow_db)
    run = client.get_model_version("vargpt", "1").run_id
    newer = measured(changed("vqa.digit", 0.5), folder)

    assert register(mlflow_db, "vargpt", run, folder, newer, read_lineage(folder)) == "1"

    assert len(client.search_model_versions("name = 'vargpt'")) == 1
    assert json.loads(client.get_model_version("vargpt", "1").tags["vargpt.metrics"]) == newer


def test_other_weights_of_the_same_run_leave_the_first_version_as_it_was(mlflow_db, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_db)
    candidate(mlflow_db, tmp_path, "one", METRICS)
    run = MlflowClient(mlflow_db, mlflow_db).get_model_version("vargpt", "1").run_id
    other = published_model(tmp_path, "other")

    assert register(mlflow_db, "vargpt", run, other, measured(METRICS, other), read_lineage(other)) == "2"

    for version, content in (("1", "one"), ("2", "other")):
        folder = Path(download_artifacts(f"models:/vargpt/{version}"))
        verify(folder)
        assert (folder / "model.safetensors").read_text() == content


@pytest.mark.parametrize(
    ("subject", "message"),
    [
        ({"weights_sha256": "0" * 64}, "the figures are of weights 000"),
        ({"split": "validation"}, "the figures are of the split validation, only test decides"),
        ({"data_md5": "0" * 32 + ".dir"}, r"measured on data 000.*learned from ddd"),
        ({"n": 3}, r"the figures do not say what they are of \(weights_sha256, data_md5"),
    ],
)
def test_figures_of_something_else_are_not_registered(mlflow_db, tmp_path, subject, message):
    folder = published_model(tmp_path, "one")
    figures = measured(METRICS, folder, **subject)

    with pytest.raises(ValueError, match=message):
        register(mlflow_db, "vargpt", "run", folder, figures, read_lineage(folder))


def test_figures_that_name_nothing_are_not_registered(mlflow_db, tmp_path):
    folder = published_model(tmp_path, "one")

    with pytest.raises(ValueError, match="the figures do not say what they are of"):
        register(mlflow_db, "vargpt", "run", folder, METRICS, read_lineage(folder))


def test_a_damaged_folder_is_not_registered(mlflow_db, tmp_path):
    folder = published_model(tmp_path, "one")
    figures = measured(METRICS, folder)
    (folder / "config.json").write_text("[]")

    with pytest.raises(ValueError, match=r"config\.json has SHA-256"):
        register(mlflow_db, "vargpt", "run", folder, figures, read_lineage(folder))


def test_weights_that_the_record_does_not_name_are_not_registered(mlflow_db, tmp_path):
    folder, other = published_model(tmp_path, "one"), published_model(tmp_path, "other")

    with pytest.raises(ValueError, match="the lineage record says"):
        register(mlflow_db, "vargpt", "run", other, measured(METRICS, other), read_lineage(folder))


def test_a_run_that_mlflow_does_not_know_is_named(mlflow_db, tmp_path):
    folder = published_model(tmp_path, "x")
    lineage = Lineage(data_md5=DATA, config_sha256="c")

    with pytest.raises(ValueError, match=r"knows no run 'abc'.*`vargpt sync`"):
        register(mlflow_db, "vargpt", "abc", folder, measured(METRICS, folder), lineage)


def test_files_swapped_in_the_store_are_seen_when_a_version_is_fetched(mlflow_db, tmp_path):
    candidate(mlflow_db, tmp_path, "one", METRICS)
    other = published_model(tmp_path, "other")
    [stored] = (tmp_path / "mlartifacts").rglob("manifest.json")
    for file in other.iterdir():
        (stored.parent / file.name).write_bytes(file.read_bytes())

    with pytest.raises(ValueError, match=r"models:/vargpt/1 was registered with weights \w+, its files are"):
        fetch(mlflow_db, "models:/vargpt/1", tmp_path / "fetched")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("models:/vargpt@nobody", "cannot be fetched"),
        ("models:/vargpt/99", "cannot be fetched"),
        ("models:/vargpt", "a model is models:/NAME@ALIAS or models:/NAME/VERSION"),
    ],
)
def test_a_version_that_cannot_be_had_is_named(mlflow_db, tmp_path, address, message):
    with pytest.raises(ValueError, match=message) as caught:
        fetch(mlflow_db, address, tmp_path)
    assert address in str(caught.value)


def test_a_version_behind_a_server_that_is_away_may_be_had_later(monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

    with pytest.raises(ConnectionError, match=r"models:/vargpt@champion cannot be fetched"):
        fetch("http://127.0.0.1:9", "models:/vargpt@champion", tmp_path)
