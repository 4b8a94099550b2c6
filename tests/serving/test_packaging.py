"""From the registry to a bento that answers: real MLflow, real BentoML."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient
from PIL import Image

from model.manifest import LINEAGE, manifest_sha256, verify
from serving.packaging import BENTO_TAG, copy_published, fetch, read_lineage, runtime_requirements

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def registry(mlflow_db: str, published: Path, tmp_path: Path) -> str:
    """A registry whose version 1 of vargpt is the published model, and champion."""
    client = MlflowClient(mlflow_db)
    experiment = client.create_experiment("vargpt", artifact_location=str(tmp_path / "artifacts"))
    run_id = client.create_run(experiment).info.run_id
    client.log_artifacts(run_id, str(published), "model")
    client.create_registered_model("vargpt")
    version = client.create_model_version("vargpt", f"runs:/{run_id}/model", run_id).version
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

    tag = package(registry, home)["bento_tag"]
    asked = vargpt(
        "ask", "Draw a seven.", "--image", str(shown), "--out", str(out), "--seed", "4", "--json", home=home
    )

    name, _, version = tag.partition(":")
    bento = yaml.safe_load((home / "bentos" / name / version / "bento.yaml").read_text())
    assert bento["labels"]["model_version"] == "1"
    assert bento["labels"]["weights_sha256"] == manifest_sha256(published)
    assert bento["labels"]["data_md5"] == "0123.dir"
    assert bento["labels"]["bento_tag"] == tag
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


def test_only_what_the_manifest_names_is_copied(published: Path, tmp_path: Path):
    folder = tmp_path / "model"
    shutil.copytree(published, folder)
    (folder / "MLmodel").write_text("something that the registry has put there")

    copy_published(folder, tmp_path / "copy")

    assert not (tmp_path / "copy" / "MLmodel").exists()


def test_the_image_needs_no_tool_that_only_packaging_needs():
    names = {line.split("==")[0] for line in runtime_requirements(ROOT / "pyproject.toml")}

    assert {"torch", "transformers", "bentoml", "fastapi", "jinja2"} <= names
    assert not names & {"mlflow", "pip", "uv", "dvc"}
