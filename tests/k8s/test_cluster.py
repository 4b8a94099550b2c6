"""Training as jobs on a real cluster, compared with the same training on this machine.

CLUSTER_SCRIPT names a script that brings a cluster up (`up`, which prints its KUBECONFIG), builds an image
for it (`build TAG DIR [options]`), and takes it down (`down`). Without one, KUBECONFIG names a cluster that
has the Training Operator and, on its nodes, the image that the manifests name. With neither, the tests are
skipped, or fail where CLUSTER=required says that there must be one.
"""

import copy
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml
from safetensors.torch import load_file

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
IMAGE = "localhost/vargpt-training:dev"
ASK_MLFLOW = """
import os, sys, urllib.request
address = os.environ["MLFLOW_TRACKING_URI"] + "/api/2.0/mlflow/" + sys.argv[1]
body = sys.argv[2].encode() if sys.argv[2:] else None
request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
print(urllib.request.urlopen(request).read().decode())
"""


class Cluster:
    """kubectl, in the namespace of the manifests."""

    def __init__(self, kubeconfig: str) -> None:
        beside = Path(kubeconfig).parent / "bin"
        self.program = shutil.which("kubectl", path=f"{beside}{os.pathsep}{os.environ['PATH']}")
        self.kubeconfig = kubeconfig

    def run(self, *arguments: str, data: bytes | None = None, is_checked: bool = True) -> bytes:
        """What kubectl says to these arguments; its complaint is part of the failure."""
        command = [str(self.program), "--kubeconfig", self.kubeconfig, "--namespace", "vargpt", *arguments]
        done = subprocess.run(command, input=data, capture_output=True, check=False)
        assert not is_checked or done.returncode == 0, f"{arguments}: {done.stderr.decode()}"
        return done.stdout

    def get(self, *arguments: str) -> dict[str, Any]:
        """An object, or a list of them."""
        return json.loads(self.run("get", *arguments, "--output", "json"))

    def apply(self, item: dict[str, Any]) -> None:
        """Creates an object."""
        self.run("apply", "--filename", "-", data=json.dumps(item).encode())

    def logs(self, job: str) -> str:
        """What the workers of a job said, those that are still there."""
        selector = f"training.kubeflow.org/job-name={job}"
        return self.run("logs", "--prefix", "--tail=-1", "--selector", selector, is_checked=False).decode()

    def ended(self, job: str, seconds: float = 240) -> str:
        """Waits for the end of a PyTorchJob: Succeeded or Failed."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            conditions = self.get("pytorchjob", job).get("status", {}).get("conditions", [])
            for condition in conditions:
                if condition["type"] in ("Succeeded", "Failed") and condition["status"] == "True":
                    return condition["type"]
            time.sleep(0.5)
        raise AssertionError(f"{job} has not ended after {seconds} s: {conditions}\n{self.logs(job)}")

    def starts(self, job: str) -> int:
        """How many workers were ever made for a job."""
        events = self.get("events", "--field-selector", f"involvedObject.name={job}")["items"]
        return sum(event.get("count") or 1 for event in events if event["reason"] == "SuccessfulCreatePod")

    def on_volume(self, *command: str) -> bytes:
        """What a command says whose working folder is the shared volume."""
        return self.run("exec", "desk", "--", *command)

    def fetch(self, into: Path, *paths: str) -> Path:
        """Copies folders of the volume to this machine."""
        archive = io.BytesIO(self.on_volume("tar", "--create", *paths))
        with tarfile.open(fileobj=archive) as files:
            files.extractall(into, filter="data")
        return into

    def ask_mlflow(self, method: str, **body: Any) -> dict[str, Any]:
        """What the tracking server says to a pod that calls it by name."""
        text = [json.dumps(body)] if body else []
        return json.loads(self.on_volume("python", "-c", ASK_MLFLOW, method, *text))


def manifest(stage: str, name: str, *arguments: str) -> dict[str, Any]:
    """A stage's job as it lies in k8s/, under another name and with further arguments."""
    job = yaml.safe_load((ROOT / "k8s" / f"{stage}.yaml").read_text())
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
        "metadata": {"name": "desk", "namespace": "vargpt"},
        "spec": pod,
    }


def head() -> str:
    """The commit of the tree, or that it has none."""
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def build(script: str) -> None:
    """Builds the image of the tree as it lies and makes it known to the cluster."""
    options = ["--file", str(ROOT / "k8s" / "images" / "training.Dockerfile")]
    options += ["--build-arg", "BASE=localhost/python:3.11", "--build-arg", "TORCH=cpu"]
    options += ["--build-arg", f"GIT_COMMIT={head()}"]
    done = subprocess.run(
        [script, "build", IMAGE, str(ROOT), *options], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def give_up(reason: str) -> NoReturn:
    """Ends a test that has no cluster: skipped, or failed where there must be one."""
    (pytest.fail if os.environ.get("CLUSTER") == "required" else pytest.skip)(f"no cluster: {reason}")


@pytest.fixture(scope="session")
def bare_cluster() -> Iterator[Cluster]:
    """A cluster with the image and without our namespace; it is taken down if it was brought up for this."""
    script, kubeconfig = os.environ.get("CLUSTER_SCRIPT"), os.environ.get("KUBECONFIG")
    if not script:
        if not kubeconfig:
            give_up("neither CLUSTER_SCRIPT nor KUBECONFIG is set")
        found = Cluster(kubeconfig)
        if found.program is None:
            give_up("KUBECONFIG is set, but there is no kubectl")
        if found.run("get", "namespace", "vargpt", "--ignore-not-found"):
            give_up("that of KUBECONFIG has a namespace vargpt, which is not ours to touch")
        yield found
        found.run("delete", "namespace", "vargpt")
        return
    was_up = subprocess.run([script, "status"], capture_output=True, check=False).returncode == 0
    up = subprocess.run([script, "up"], capture_output=True, text=True, check=False)
    if up.returncode != 0:
        give_up(f"{script} up failed: {up.stderr.strip()[-300:]}")
    try:
        build(script)
        found = Cluster(up.stdout.strip().rpartition("KUBECONFIG=")[2])
        found.run("delete", "namespace", "vargpt", "--ignore-not-found")
        yield found
    finally:
        if not was_up:
            subprocess.run([script, "down"], capture_output=True, check=True)


@pytest.fixture(scope="session")
def cluster(bare_cluster: Cluster) -> Cluster:
    """A cluster with the platform, and with data and backbones on the volume."""
    bare_cluster.run("apply", "--kustomize", str(ROOT / "k8s" / "platform"))
    bare_cluster.apply(desk())
    bare_cluster.run("rollout", "status", "deployment/mlflow", "--timeout", "180s")
    bare_cluster.run("apply", "--filename", str(ROOT / "k8s" / "backbones.yaml"))
    bare_cluster.run("wait", "--for=condition=Ready", "pod/desk", "--timeout", "60s")
    bare_cluster.run("wait", "--for=condition=Complete", "job/backbones", "--timeout", "400s")
    return bare_cluster


@pytest.fixture(scope="session")
def stage1(cluster: Cluster) -> Cluster:
    """The cluster after `kubectl apply -f k8s/stage1.yaml`."""
    cluster.run("apply", "--filename", str(ROOT / "k8s" / "stage1.yaml"))
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
