"""The pipeline as jobs of a real cluster: `dvc repro` submits, attaches, survives outages, fetches results.

In a namespace of its own with the least that a job needs; what k8s/platform adds is tested elsewhere.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.k8s.cluster import ROOT, Cluster, new_namespace

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

NAMESPACE = "submission"


def objects() -> list[dict[str, Any]]:
    """Accounts, settings, secrets and volumes that jobs refer to."""
    settings = {
        "SIZE": "smoke",
        "OMP_NUM_THREADS": "1",
        "MLFLOW_TRACKING_URI": "sqlite:////workspace/mlflow.db",
    }
    made = [_object("v1", "ServiceAccount", name) for name in ("trainer", "promoter")]
    made += [_object("v1", "ConfigMap", "vargpt", data=settings)]
    made += [_object("v1", "Secret", name) for name in ("mlflow-trainer", "mlflow-promoter")]
    claim = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "5Gi"}}}
    made += [
        _object("v1", "PersistentVolumeClaim", name, spec=claim)
        for name in ("workspace", "dvc-cache", "models")
    ]
    made += [_object("scheduling.k8s.io/v1", "PriorityClass", "vargpt-training", value=1000)]
    return made


def _object(api: str, kind: str, name: str, **rest: Any) -> dict[str, Any]:
    return {"apiVersion": api, "kind": kind, "metadata": {"name": name}, **rest}


@pytest.fixture(scope="module")
def cluster(cluster_with_image: Cluster) -> Iterator[Cluster]:
    """A namespace in which jobs find all that they refer to, and that our commands are told of."""
    with (
        new_namespace(cluster_with_image, NAMESPACE, *objects()) as found,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("KUBECONFIG", found.kubeconfig)
        patch.setenv("VARGPT_NAMESPACE", NAMESPACE)
        # Where dvc finds the python that it calls.
        patch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
        yield found


def clone(source: Path, folder: Path) -> Path:
    """A clone in which stages are jobs of size smoke."""
    subprocess.run(["git", "clone", "-q", str(source), str(folder)], check=True)
    path = folder / "params.yaml"
    values = path.read_text().replace("size: tiny", "size: smoke", 1)
    path.write_text(values.replace("launcher: local", "launcher: kubernetes", 1))
    assert yaml.safe_load(path.read_text())["launcher"] == "kubernetes"
    return folder


@pytest.fixture(scope="module")
def repository(cluster, tmp_path_factory):
    """A repository whose data lie beside it."""
    folder = clone(ROOT, tmp_path_factory.mktemp("submission") / "repository")
    run(folder, "dvc", "pull", "-q", "data.dvc")
    git(folder, "commit", "-qam", "on the cluster")
    return folder


def git(folder: Path, *arguments: str) -> None:
    """Runs git as somebody."""
    subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], cwd=folder, check=True)


def change(folder: Path, old: str, new: str) -> None:
    """Changes a parameter of a clone."""
    path = folder / "params.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def start(folder: Path, *command: str) -> subprocess.Popen[str]:
    """A command of ours in a clone, its output in one pipe."""
    return subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(folder: Path, *command: str, code: int = 0) -> str:
    """The same, to its end."""
    process = start(folder, *command)
    said, _ = process.communicate(timeout=1500)
    assert process.returncode == code, said
    return said


@pytest.fixture(scope="module")
def repro(repository):
    """The repository after `dvc repro` up to stage 1, and what that said."""
    return repository, run(repository, "dvc", "repro", "stage1")


def test_dvc_repro_runs_stages_as_jobs_and_brings_their_pointers(repro, cluster):
    repository, said = repro

    pointer = json.loads((repository / "artifacts" / "stage1.json").read_text())
    assert (repository / "outputs" / "stage1" / "model" / "manifest.json").is_file()
    assert pointer["stage"] == "stage1"
    assert "stage1-" in said and "is Succeeded" in said and "30/30" in said
    jobs = cluster.get("pytorchjobs")["items"]
    assert [job["metadata"]["labels"]["vargpt.io/stage"] for job in jobs] == ["stage1"]


def test_a_second_dvc_repro_and_one_in_a_fresh_clone_have_nothing_to_do(repro, tmp_path):
    repository, _ = repro
    assert "Running stage" not in run(repository, "dvc", "repro", "stage1")
    git(repository, "add", "-f", "dvc.lock", "artifacts")
    git(repository, "commit", "-qm", "results")

    subprocess.run(["git", "clone", "-q", str(repository), str(tmp_path / "clone")], check=True)

    assert "Running stage" not in run(tmp_path / "clone", "dvc", "repro", "--allow-missing", "stage1")


def test_a_job_that_is_done_is_found_and_its_results_are_fetched_again(repro):
    repository, _ = repro
    pointer = repository / "artifacts" / "backbones.json"
    before = pointer.read_text()
    pointer.unlink()
    # The commit is part of the name.
    subprocess.run(["git", "checkout", "-q", "HEAD~1"], cwd=repository, check=False)
    began = time.monotonic()

    said = run(repository, "training.commands", "submit", "backbones", "--wait")

    assert "is there already: attached to it" in said
    assert pointer.read_text() == before and time.monotonic() - began < 120
    subprocess.run(["git", "checkout", "-qf", "-"], cwd=repository, check=True)


def test_a_submitter_survives_an_api_server_that_is_gone_for_a_minute(repro, cluster):
    repository, _ = repro
    if not cluster.script:
        pytest.skip("only a cluster of CLUSTER_SCRIPT can be broken")
    change(repository, "stage1: {steps: 30", "stage1: {steps: 60")

    process = start(repository, "training.commands", "submit", "stage1", "--wait")
    time.sleep(15)
    subprocess.run([cluster.script, "stop", "kube-apiserver"], check=True)
    time.sleep(60)
    subprocess.run([cluster.script, "start", "kube-apiserver"], check=True)
    said, _ = process.communicate(timeout=900)

    assert process.returncode == 0, said
    assert said.count("the API server does not answer") == 1
    assert "the API server answers again after" in said


def test_who_stops_waiting_leaves_the_job_and_cancel_ends_it(repro, cluster):
    repository, _ = repro
    change(repository, "lr: 5.0e-3", "lr: 4.0e-3")

    process = start(repository, "training.commands", "submit", "stage1", "--wait")
    time.sleep(25)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=120)

    assert process.returncode == 143, said
    name = said.split(" goes on;")[0].split()[-1]
    assert name in run(repository, "training.commands", "jobs")
    change(repository, "lr: 4.0e-3", "lr: 3.0e-3")
    assert f"job {name}, of other parameters" in run(
        repository, "training.commands", "submit", "stage1", code=2
    )
    run(repository, "training.commands", "cancel", name)
    assert name not in cluster.run("get", "pytorchjobs").decode()


def test_a_stage_is_submitted_as_a_train_job_and_brings_its_pointer(repro, cluster):
    repository, _ = repro
    if not cluster.script:
        pytest.skip("Trainer v2 is added by CLUSTER_SCRIPT")
    subprocess.run([cluster.script, "add", "trainer"], capture_output=True, check=True)
    change(repository, "\n  muon_lr: 6.0e-3", "\n  muon_lr: 5.0e-3")
    pointer = repository / "artifacts" / "stage1.json"
    before = pointer.read_text()

    said = run(repository, "training.commands", "submit", "stage1", "--api", "trainjob", "--wait")

    [job] = cluster.get("trainjobs")["items"]
    name = job["metadata"]["name"]
    assert f"{name} is Succeeded" in said and said.splitlines()[-1] == f"{name}: done"
    assert pointer.read_text() != before
    assert name in run(repository, "training.commands", "jobs")
    run(repository, "training.commands", "cancel", name)
    assert not cluster.get("trainjobs")["items"]


def test_a_mistake_ends_the_submitter_with_two_and_the_sentence_of_the_job(repro):
    repository, _ = repro
    change(repository, "batch: 16, warmup: 2, checkpoint", "batch: 1, warmup: 2, checkpoint")

    said = run(repository, "training.commands", "submit", "stage1", "--wait", code=2)

    assert "stage1.batch 1 gives 2 processes no sample each" in said
