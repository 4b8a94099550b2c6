"""Where a real scheduler, quota and Kueue put jobs of the 7b size, on simulated nodes where nothing runs."""

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.k8s.cluster import K8S, Cluster, eventually, give_up, objects
from training.cluster.jobs import PRIORITY_LABEL

pytestmark = pytest.mark.cluster

NAMESPACE, JOB_NAME = "placement", "training.kubeflow.org/job-name"
GPU_NODES, RACK = "nvidia.com/gpu.present=true", "topology.kubernetes.io/rack"


def moved(item: dict[str, Any]) -> dict[str, Any]:
    """An object in the namespace of these tests."""
    text = json.dumps(item)
    for name in (
        '"namespace": "vargpt"',
        '"kubernetes.io/metadata.name": "vargpt"',
        '"clusterQueue": "vargpt"',
    ):
        text = text.replace(name, name.replace("vargpt", NAMESPACE))
    found = json.loads(text)
    if found["kind"] in ("ClusterQueue", "ResourceFlavor"):
        found["metadata"]["name"] = NAMESPACE if found["kind"] == "ClusterQueue" else "vargpt-gpu"
    return found


@pytest.fixture(scope="module")
def large_cluster(api: Cluster) -> Iterator[Cluster]:
    """64 simulated nodes of 8 GPUs, and a namespace with the platform's quota, limits and accounts."""
    if not api.script:
        give_up("simulated nodes need CLUSTER_SCRIPT")
    api.run("delete", "namespace", NAMESPACE, "--ignore-not-found")
    subprocess.run([api.script, "nodes", "64", "8"], capture_output=True, check=True)
    api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    kinds = {"ServiceAccount", "ResourceQuota", "LimitRange", "ConfigMap", "PersistentVolumeClaim"}
    platform = objects(api.run("kustomize", str(K8S / "platform")))
    found = Cluster(api.kubeconfig, api.script, NAMESPACE)
    for item in platform:
        if item["kind"] in kinds:
            found.apply(moved(item))
    yield found
    found.run("delete", "namespace", NAMESPACE, "--wait=false")
    for kind in ("clusterqueue", "resourceflavor"):
        name = NAMESPACE if kind == "clusterqueue" else "vargpt-gpu"
        found.run("delete", kind, name, "--ignore-not-found", "--wait=false")
    found.run("delete", "node", "--selector", GPU_NODES, "--wait=false")


@pytest.fixture
def empty(large_cluster: Cluster) -> Iterator[Cluster]:
    """The large cluster without jobs or pods."""
    yield large_cluster
    for kind in ("pytorchjobs", "deployments", "pods"):
        large_cluster.run("delete", kind, "--all", "--grace-period=0", "--force")


def pods_of(cluster: Cluster, job: str) -> list[dict[str, Any]]:
    """The workers of a job."""
    return cluster.get("pods", "--selector", f"{JOB_NAME}={job}")["items"]


def nodes_of(cluster: Cluster, job: str) -> list[str]:
    """Where its workers run, as far as they do."""
    return [pod["spec"]["nodeName"] for pod in pods_of(cluster, job) if "nodeName" in pod["spec"]]


def submit(cluster: Cluster, path: Path) -> None:
    """Applies a rendered job in the namespace of these tests."""
    for item in objects(path.read_text()):
        cluster.apply(moved(item))


def test_each_worker_of_a_large_job_has_a_gpu_node_of_its_own(empty):
    submit(empty, K8S / "stage1.yaml")
    eventually(lambda: len(nodes_of(empty, "stage1")) == 4)

    nodes = nodes_of(empty, "stage1")
    assert len(set(nodes)) == 4
    assert all(node.startswith("gpu-") for node in nodes)
    for pod in pods_of(empty, "stage1"):
        [worker] = pod["spec"]["containers"]
        assert worker["resources"]["limits"]["nvidia.com/gpu"] == "8"


def test_the_quota_has_room_for_one_stage_and_says_so_of_the_next(empty):
    submit(empty, K8S / "stage1.yaml")
    eventually(lambda: len(nodes_of(empty, "stage1")) == 4)
    submit(empty, K8S / "stage2.yaml")

    def is_refused() -> bool:
        events = empty.get("events", "--field-selector", "reason=FailedCreatePod")
        return any("exceeded quota: vargpt" in event["message"] for event in events["items"])

    eventually(is_refused)
    assert len(nodes_of(empty, "stage2")) < 4


def test_training_takes_the_place_of_pods_without_priority_and_yields_to_serving(empty):
    empty.run("delete", "resourcequota", "vargpt")
    fill(empty, "idle", 64, None)
    eventually(lambda: running(empty, "idle") == 64)

    submit(empty, K8S / "stage1.yaml")
    eventually(lambda: len(nodes_of(empty, "stage1")) == 4)
    assert running(empty, "idle") == 60

    fill(empty, "answers", 64, "vargpt-serving")
    eventually(lambda: running(empty, "answers") == 64)
    assert not nodes_of(empty, "stage1")


def fill(cluster: Cluster, name: str, replicas: int, priority: str | None) -> None:
    """A deployment whose pods take a whole node each."""
    container = {"name": "any", "image": "any", "resources": {"limits": {"nvidia.com/gpu": "8"}}}
    spec: dict[str, Any] = {
        "containers": [container],
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
        "terminationGracePeriodSeconds": 0,
    }
    template = {
        "metadata": {"labels": {"app": name}},
        "spec": spec | ({"priorityClassName": priority} if priority else {}),
    }
    cluster.apply(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": template},
        },
    )


def running(cluster: Cluster, name: str) -> int:
    """How many pods of a deployment have a node and stay there."""
    pods = cluster.get("pods", "--selector", f"app={name}")["items"]
    return sum("nodeName" in pod["spec"] and "deletionTimestamp" not in pod["metadata"] for pod in pods)


def test_a_job_fills_one_rack_before_it_goes_to_another(empty):
    nodes = [node["metadata"]["name"] for node in empty.get("nodes", "--selector", GPU_NODES)["items"]]
    for number, node in enumerate(sorted(nodes)):
        empty.run("label", "node", node, f"{RACK}=rack-{number % 16}", "--overwrite")

    submit(empty, K8S / "stage1.yaml")
    eventually(lambda: len(nodes_of(empty, "stage1")) == 4)

    labels = [empty.get("node", node)["metadata"]["labels"] for node in nodes_of(empty, "stage1")]
    assert len({found[RACK] for found in labels}) == 1


@pytest.fixture
def queue(empty: Cluster) -> Iterator[Cluster]:
    """The overlay `kueue`, with room for one stage."""
    for item in objects(empty.run("kustomize", str(K8S / "overlays" / "kueue"))):
        empty.apply(moved(item))
    yield empty
    empty.run("delete", "pytorchjobs", "--all")
    eventually(lambda: not empty.get("workloads")["items"])


def is_held(cluster: Cluster, job: str) -> bool:
    """Whether a job is suspended and has no pods."""
    held = cluster.get("pytorchjob", job)
    return held["spec"]["runPolicy"]["suspend"] is True and not pods_of(cluster, job)


def test_kueue_admits_one_stage_and_holds_the_next_until_it_has_ended(queue):
    submit(queue, K8S / "overlays" / "kueue" / "stage1.yaml")
    eventually(lambda: len(nodes_of(queue, "stage1")) == 4)
    submit(queue, K8S / "overlays" / "kueue" / "stage2.yaml")
    time.sleep(10)

    assert is_held(queue, "stage2")

    queue.run("delete", "pytorchjob", "stage1")
    eventually(lambda: len(nodes_of(queue, "stage2")) == 4)


def test_an_urgent_job_takes_the_place_of_another_which_goes_on_after_it(queue):
    submit(queue, K8S / "overlays" / "kueue" / "stage1.yaml")
    eventually(lambda: len(nodes_of(queue, "stage1")) == 4)

    [urgent] = objects((K8S / "overlays" / "kueue" / "stage2.yaml").read_text())
    urgent["metadata"]["labels"][PRIORITY_LABEL] = "vargpt-urgent"
    queue.apply(moved(urgent))

    eventually(lambda: len(nodes_of(queue, "stage2")) == 4)
    assert is_held(queue, "stage1")
    queue.run("delete", "pytorchjob", "stage2")
    eventually(lambda: len(nodes_of(queue, "stage1")) == 4)
