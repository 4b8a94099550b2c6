"""Training as jobs on a real cluster, compared with the same training on this machine."""

import copy
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from tests.k8s.cluster import ROOT, TINY, Cluster, eventually, head

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


def manifest(stage: str, name: str, *arguments: str) -> dict[str, Any]:
    """A stage's job as it lies in k8s/overlays/tiny, under another name and with further arguments."""
    job = yaml.safe_load((TINY / f"{stage}.yaml").read_text())
    job["metadata"]["name"] = name
    pod_of(job)["containers"][0]["args"] += arguments
    return job


def pod_of(job: dict[str, Any]) -> dict[str, Any]:
    """The pod that a job's workers are made of."""
    return job["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]


def desk() -> dict[str, Any]:
    """A pod like a worker that does nothing: a place to look at the volume from."""
    pod = copy.deepcopy(pod_of(manifest("stage1", "desk")))
    pod["containers"][0] |= {"command": ["sleep", "infinity"], "args": []}
    pod |= {"terminationGracePeriodSeconds": 0, "topologySpreadConstraints": []}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "desk",
            "namespace": "vargpt",
            # What network policies let it reach.
            "labels": {"app.kubernetes.io/component": "training"},
        },
        "spec": pod,
    }


@pytest.fixture(scope="session")
def cluster(cluster_with_image: Cluster, platform: Cluster) -> Cluster:
    """A cluster with the platform, and with data and backbones on the volume."""
    platform.apply(desk())
    platform.run("apply", "--filename", str(TINY / "backbones.yaml"))
    platform.run("wait", "--for=condition=Ready", "pod/desk", "--timeout", "60s")
    platform.run("wait", "--for=condition=Complete", "job/backbones", "--timeout", "600s")
    return platform


@pytest.fixture(scope="session")
def stage1(cluster: Cluster) -> Cluster:
    """The cluster after `kubectl apply -f k8s/overlays/tiny/stage1.yaml`."""
    cluster.run("apply", "--filename", str(TINY / "stage1.yaml"))
    assert cluster.ended("stage1") == "Succeeded", cluster.logs("stage1")
    return cluster


def assert_same_weights(one: Path, other: Path) -> None:
    """Every tensor of two published models is the same, bit for bit; if not, says how far they are apart."""
    names = sorted(path.name for path in one.glob("*.safetensors"))
    assert names and names == sorted(path.name for path in other.glob("*.safetensors"))
    for name in names:
        here, there = load_file(one / name), load_file(other / name)
        assert here.keys() == there.keys()
        far = {
            key: (here[key] - there[key]).abs().max().item()
            for key in here
            if not here[key].equal(there[key])
        }
        assert not far, f"{len(far)} of {len(here)} tensors of {name} differ, by up to {max(far.values())}"


def test_stage_1_succeeds_in_two_workers_that_never_restarted(stage1):
    pods = stage1.get("pods", "--selector", "training.kubeflow.org/job-name=stage1")["items"]

    assert len(pods) == 2
    assert stage1.starts("stage1") == 2


def test_the_run_and_its_metrics_are_in_the_tracking_server(stage1):
    experiments = stage1.ask_mlflow("experiments/search?max_results=100")["experiments"]
    ids = [experiment["experiment_id"] for experiment in experiments]

    runs = stage1.ask_mlflow("runs/search", experiment_ids=ids, filter="status = 'FINISHED'")["runs"]

    pointer = json.loads(stage1.on_volume("cat", "artifacts/stage1.json"))
    [run] = [run for run in runs if run["info"]["run_id"] == pointer["run_id"]]
    assert any("loss" in metric["key"] for metric in run["data"]["metrics"])


def test_the_weights_are_those_of_two_processes_on_this_machine(stage1, tmp_path):
    stage1.fetch(tmp_path / "cluster", "outputs/stage1/model")
    stage1.fetch(tmp_path / "local", "prepared", "outputs/backbones")
    size = stage1.get("configmap", "vargpt")["data"]["SIZE"]
    command = [sys.executable, "-m", "training.launching", "stage1", "--nproc", "2"]
    command += ["--params", str(ROOT / "params.yaml"), "--size", size]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}

    subprocess.run(command, cwd=tmp_path / "local", env=environment, check=True, timeout=300)

    model = Path("outputs", "stage1", "model")
    assert_same_weights(tmp_path / "local" / model, tmp_path / "cluster" / model)


def test_workers_deleted_in_mid_training_come_back_and_end_with_the_same_weights(stage1, tmp_path):
    stage1.on_volume("mkdir", "again")
    stage1.on_volume("cp", "--recursive", "outputs/backbones", "again/")
    stage1.apply(manifest("stage1", "again", "--outputs", "again"))
    wait_for_checkpoint(stage1, "again", after=0)

    stage1.run("delete", "pod", "again-worker-1")
    wait_for_checkpoint(stage1, "again", after=newest_checkpoint(stage1, "again"))
    stage1.run("delete", "pod", "again-worker-0", "--grace-period=0", "--force")

    assert stage1.ended("again") == "Succeeded", stage1.logs("again")
    assert stage1.starts("again") > 4
    stage1.fetch(tmp_path, "outputs/stage1/model", "again/stage1/model")
    assert_same_weights(tmp_path / "again" / "stage1" / "model", tmp_path / "outputs" / "stage1" / "model")


def test_a_trainjob_of_the_same_stage_ends_with_the_same_weights(stage1, tmp_path):
    if stage1.script:
        subprocess.run([stage1.script, "add", "trainer"], capture_output=True, check=True)
    runtime = TINY / "trainjob" / "runtime.yaml"
    job = yaml.safe_load(runtime.with_name("stage1.yaml").read_text())
    job["metadata"]["name"] = "second"
    job["spec"]["trainer"]["args"] += ["--outputs", "second"]
    stage1.on_volume("mkdir", "-p", "second")
    stage1.on_volume("cp", "--recursive", "outputs/backbones", "second/")
    eventually(lambda: not stage1.call("apply", "--filename", str(runtime)).returncode)
    eventually(lambda: not stage1.call("apply", "--filename", "-", data=json.dumps(job).encode()).returncode)

    stage1.run("wait", "--for=condition=Complete", "trainjob/second", "--timeout", "300s")

    stage1.fetch(tmp_path, "outputs/stage1/model", "second/stage1/model")
    assert_same_weights(tmp_path / "second" / "stage1" / "model", tmp_path / "outputs" / "stage1" / "model")


def newest_checkpoint(cluster: Cluster, outputs: str) -> int:
    """The newest step of stage 1 that is committed on the volume, or 0."""
    found = cluster.on_volume("find", f"{outputs}", "-path", "*/stage1/*/COMPLETE").decode().split()
    return max((int(Path(path).parent.name.removeprefix("step_")) for path in found), default=0)


def wait_for_checkpoint(cluster: Cluster, outputs: str, after: int) -> None:
    """Waits until a step after this one is committed."""
    until = time.monotonic() + 120
    while newest_checkpoint(cluster, outputs) <= after:
        assert time.monotonic() < until, f"no checkpoint after step {after}"
        time.sleep(0.2)


def test_a_mistake_ends_a_job_at_the_first_attempt_with_the_reason_in_its_log(cluster):
    cluster.apply(manifest("stage1", "wrong", "--size", "enormous"))

    assert cluster.ended("wrong") == "Failed"
    assert cluster.starts("wrong") == 2
    assert "enormous" in cluster.logs("wrong")


def test_the_image_knows_its_commit_and_can_change_nothing_of_itself(cluster):
    said = cluster.on_volume(
        "sh", "-c", "echo $GIT_COMMIT; id -u; touch /app/file || echo read-only"
    ).decode()

    assert said.split() == [head(), "10001", "read-only"]
