"""From the registry to a bento that answers: real MLflow, real BentoML."""

import json
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient
from PIL import Image

from model.manifest import LINEAGE, MANIFEST, manifest_sha256, verify, write_manifest
from serving.packaging import (
    BENTO_TAG,
    LOCKS,
    WEIGHTS_TAG,
    build,
    code_labels,
    fetch,
    lineage_labels,
    read_lineage,
)

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def registry(mlflow_db: str, published: Path, tmp_path: Path) -> str:
    """A registry whose version 1 of vargpt is the published model, and champion."""
    client = MlflowClient(mlflow_db)
    experiment = client.create_experiment("vargpt", artifact_location=str(tmp_path / "artifacts"))
    run_id = client.create_run(experiment).info.run_id
    client.log_artifacts(run_id, str(published), "model")
    client.create_registered_model("vargpt")
    tags = {WEIGHTS_TAG: manifest_sha256(published)}
    version = client.create_model_version("vargpt", f"runs:/{run_id}/model", run_id, tags=tags).version
    client.set_registered_model_alias("vargpt", "champion", version)
    return mlflow_db


def vargpt(function: str, *arguments: str, home: Path) -> subprocess.CompletedProcess:
    """Runs a command of serving in a process of its own, with a BentoML store of its own."""
    script = f"import sys, typer; from serving.commands import {function}; typer.run({function})"
    environment = {**os.environ, "BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True"}
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=120)


def package(registry: str, home: Path) -> dict[str, Any]:
    done = vargpt("package", "--tracking-uri", registry, "--json", home=home)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_the_champion_becomes_a_bento_that_answers_and_knows_where_it_comes_from(
    registry: str, published: Path, tmp_path: Path
):
    home, out = tmp_path / "home", tmp_path / "drawn" / "reply.png"
    shown = tmp_path / "shown.png"
    Image.new("RGB", (32, 32), "red").save(shown)

    packaged = vargpt("package", "--tracking-uri", registry, "--json", home=home)
    assert packaged.returncode == 0, packaged.stderr
    tag = json.loads(packaged.stdout.splitlines()[-1])["bento_tag"]
    asked = vargpt(
        "ask", "Draw a seven.", "--image", str(shown), "--out", str(out), "--seed", "4", "--json", home=home
    )

    name, _, version = tag.partition(":")
    bento = yaml.safe_load((home / "bentos" / name / version / "bento.yaml").read_text())
    assert bento["labels"]["model_version"] == "1"
    assert bento["labels"]["weights_sha256"] == manifest_sha256(published)
    assert bento["labels"]["data_md5"] == "0123.dir"
    assert bento["labels"]["bento_tag"] == tag
    assert bento["labels"]["training_git_commit"] == "abc"
    assert bento["labels"]["serving_git_commit"] == head_of(ROOT)
    assert "Downloading" not in packaged.stderr and "alembic" not in packaged.stderr
    assert MlflowClient(registry).get_model_version("vargpt", "1").tags[BENTO_TAG] == tag
    assert asked.returncode == 0, asked.stderr
    answer = json.loads(asked.stdout.splitlines()[-1])
    assert (answer["model_version"], answer["seed"]) == ("1", 4)
    assert all(Path(path).is_file() for path in answer["images"])


@pytest.mark.slow
def test_the_same_content_is_packaged_once_and_holds_code_and_weights_that_verify(
    registry: str, published: Path, tmp_path: Path
):
    home = tmp_path / "home"

    first, second = package(registry, home), package(registry, home)

    _, _, version = first["bento_tag"].partition(":")
    assert first == second
    assert [path.name for path in (home / "bentos" / "vargpt").glob("v*")] == [version]
    [weights] = (home / "models" / "vargpt").glob("v*/weights")
    source = home / "bentos" / "vargpt" / version / "src"
    verify(weights)
    [registered] = (tmp_path / "artifacts").rglob("model.safetensors")
    assert (weights / "model.safetensors").samefile(registered), "weights are never copied"
    assert json.loads((weights / LINEAGE).read_text())["model_version"] == "1"
    assert {path.name for path in source.iterdir() if path.is_dir()} == {"model", "serving"}
    assert not [path for path in source.rglob("*") if path.suffix in (".pyc", ".safetensors", ".pt", ".pkl")]


@pytest.mark.parametrize(
    "uri", ["models:/vargpt@nobody", "models:/vargpt/99", "runs:/abc/model", "models:/other@champion"]
)
def test_a_version_that_cannot_be_had_is_a_clear_mistake(registry: str, uri: str, tmp_path: Path):
    with pytest.raises(ValueError, match=uri.split("/")[-1]):
        fetch(registry, uri, tmp_path)


def test_lineage_of_other_weights_is_refused(published: Path, tmp_path: Path):
    folder = tmp_path / "model"
    shutil.copytree(published, folder)
    record = json.loads((folder / LINEAGE).read_text())
    (folder / LINEAGE).write_text(json.dumps({**record, "weights_sha256": "0" * 64}))

    with pytest.raises(ValueError, match="weights_sha256 000"):
        read_lineage(folder)


def head_of(folder: Path) -> str:
    command = ["git", "-C", str(folder), "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def pinned(text: str) -> set[tuple[str, frozenset[str]]]:
    """Every requirement with its hashes, however it is laid out."""
    lines = text.replace("\\\n", " ").replace("'", '"').splitlines()
    found = [line.split("--hash=") for line in lines if line.strip() and not line.startswith("#")]
    return {(name.replace(" ", ""), frozenset(part.strip() for part in hashes)) for name, *hashes in found}


@pytest.mark.slow
def test_the_bento_installs_what_the_lock_pins_and_nothing_that_floats(registry: str, tmp_path: Path):
    lock = ROOT / LOCKS["cpu"]
    script = (
        "import sys; from pathlib import Path; from serving.packaging import package; "
        "print(package(sys.argv[1], lock=Path(sys.argv[2])))"
    )
    environment = {**os.environ, "BENTOML_HOME": str(tmp_path / "home"), "BENTOML_DO_NOT_TRACK": "True"}

    done = subprocess.run(
        [sys.executable, "-c", script, registry, lock],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stderr
    name, _, version = done.stdout.splitlines()[-1].partition(":")
    [requirements] = (tmp_path / "home" / "bentos" / name / version).rglob("env/python/requirements*.txt")
    wanted = pinned(lock.read_text()) | {(f"bentoml=={metadata.version('bentoml')}", frozenset())}
    assert pinned(requirements.read_text()) == wanted
    assert all("==" in requirement for requirement, _ in wanted)
    assert any(hashes for _, hashes in wanted)


def test_a_missing_lock_is_named(registry: str, tmp_path: Path):
    with pytest.raises(ValueError, match=r"there is no .*none\.txt, which says what the bento installs"):
        build(fetch(registry, "models:/vargpt@champion", tmp_path), lock=Path("none.txt"))


def test_weights_swapped_in_the_store_with_manifest_and_record_are_not_packaged(
    registry: str, published: Path, tmp_path: Path
):
    [stored] = (tmp_path / "artifacts").rglob(MANIFEST)
    (stored.parent / "config.json").write_text("{}")
    weights = write_manifest(stored.parent)
    record = json.loads((stored.parent / LINEAGE).read_text())
    (stored.parent / LINEAGE).write_text(json.dumps({**record, "weights_sha256": weights}))

    with pytest.raises(ValueError, match=rf"was registered with weights \w+, its files are {weights}"):
        fetch(registry, "models:/vargpt/1", tmp_path / "scratch")


def test_a_version_that_names_no_weights_is_not_packaged(registry: str, tmp_path: Path):
    MlflowClient(registry).delete_model_version_tag("vargpt", "1", WEIGHTS_TAG)

    with pytest.raises(ValueError, match="was registered with weights None"):
        fetch(registry, "models:/vargpt/1", tmp_path)


def test_a_password_in_the_tracking_address_is_not_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

    with pytest.raises(ConnectionError, match=r"cannot be fetched from http://127\.0\.0\.1:9: ") as caught:
        fetch("http://ada:secret@127.0.0.1:9", "models:/vargpt@champion", tmp_path)
    assert "secret" not in str(caught.value)


def test_labels_tell_the_code_that_trained_from_the_code_that_answers(tmp_path: Path):
    for command in (
        ["init", "-q"],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "a"],
    ):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)

    assert lineage_labels(
        {"git_commit": "abc", "git_dirty": False, "run_id": None, "sources_sha256": {}}
    ) == {
        "training_git_commit": "abc",
        "training_git_dirty": "False",
    }
    assert lineage_labels({"git_commit": "abc"})["training_git_dirty"] == "unknown"
    assert code_labels(tmp_path) == {"serving_git_commit": head_of(tmp_path), "serving_git_dirty": "False"}
    (tmp_path / "serving").mkdir()
    (tmp_path / "serving" / "new.py").touch()
    assert code_labels(tmp_path)["serving_git_dirty"] == "True"
    assert code_labels(tmp_path / "serving") == {
        "serving_git_commit": "unknown",
        "serving_git_dirty": "unknown",
    }
