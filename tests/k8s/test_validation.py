"""What a real API server, scheduler, quota and operators make of the manifests; no container runs."""

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.k8s.cluster import K8S, ROOT, Cluster, eventually, give_up

pytestmark = pytest.mark.cluster

KUSTOMIZATIONS = sorted(
    path.parent
    for path in K8S.rglob("kustomization.yaml")
    if yaml.safe_load(path.read_text())["kind"] == "Kustomization" and path.parent.name != "external-secrets"
)
# Rendered jobs, which are applied one by one.
FILES = sorted(path for path in K8S.rglob("*.yaml") if "Rendered by" in path.read_text())
# These operators are not in the cluster that tests use; overlay external-secrets is of one alone.
WITHOUT_DEFINITIONS = ("monitoring.coreos.com", "external-secrets.io", "gateway.networking.k8s.io")
STAGES = ("stage1", "stage2", "stage3")
NAMESPACE, JOB_NAME = "placement", "training.kubeflow.org/job-name"


def objects(text: bytes | str) -> list[dict[str, Any]]:
    """The objects in a text."""
    return [item for item in yaml.safe_load_all(text) if item]


@pytest.fixture(scope="module")
def api(running_cluster: Cluster) -> Cluster:
    """A cluster with both operators and Kueue, and with what objects must find to be valid."""
    if running_cluster.script:
        for name in ("trainer", "kueue"):
            subprocess.run([running_cluster.script, "add", name], capture_output=True, check=True)
    for kind in (
        "pytorchjobs.kubeflow.org",
        "trainjobs.trainer.kubeflow.org",
        "clusterqueues.kueue.x-k8s.io",
    ):
        if running_cluster.call("get", kind).returncode:
            give_up(f"it has no {kind}")
    for path in (K8S / "platform" / "namespace.yaml", K8S / "platform" / "priorities.yaml"):
        running_cluster.run("apply", "--filename", str(path))
    # A TrainJob is refused while there is no runtime of its name.
    runtime = K8S / "overlays" / "trainjob" / "runtime.yaml"
    eventually(lambda: not running_cluster.call("apply", "--filename", str(runtime)).returncode)
    return running_cluster


def answer(api: Cluster, item: dict[str, Any]) -> subprocess.CompletedProcess[bytes]:
    """What the server says to an object that it is asked to take, but not to keep."""
    options, data = ("--dry-run=server", "--validate=strict"), json.dumps(item).encode()
    done = api.call("apply", *options, "--filename", "-", data=data)
    until = time.monotonic() + 120
    # Operators' webhooks are away for a while when the machine is busy.
    while b"failed calling webhook" in done.stderr and time.monotonic() < until:
        time.sleep(2)
        done = api.call("apply", *options, "--filename", "-", data=data)
    return done


def validate(api: Cluster, items: list[dict[str, Any]]) -> None:
    """The server takes every object, knows every field, and warns of nothing."""
    assert items
    for item in items:
        done = answer(api, item)
        name = f"{item['kind']} {item['metadata']['name']}"
        assert done.returncode == 0, f"{name}: {done.stderr.decode()}"
        told = [line for line in done.stderr.decode().splitlines() if "last-applied" not in line]
        assert not told, f"{name}: {told}"


@pytest.mark.parametrize("folder", KUSTOMIZATIONS, ids=lambda path: str(path.relative_to(K8S)))
def test_the_server_takes_every_object_of_an_overlay_without_a_warning(api, folder):
    items = objects(api.run("kustomize", str(folder)))

    validate(api, [item for item in items if not item["apiVersion"].startswith(WITHOUT_DEFINITIONS)])


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(K8S)))
def test_the_server_takes_every_rendered_job_without_a_warning(api, path):
    validate(api, objects(path.read_text()))


def test_a_misspelt_field_would_be_found(api):
    [job] = objects((K8S / "stage1.yaml").read_text())
    job["spec"]["runPolicy"]["cleanPodPolice"] = "None"

    with pytest.raises(AssertionError, match="cleanPodPolice"):
        validate(api, [job])


def test_a_pod_that_the_namespace_would_refuse_would_be_found(api):
    [job] = objects((K8S / "overlays" / "tiny" / "backbones.yaml").read_text())
    del job["spec"]["template"]["spec"]["containers"][0]["securityContext"]

    with pytest.raises(AssertionError, match="would violate PodSecurity"):
        validate(api, [job])


@pytest.fixture(scope="module")
def registered(api: Cluster) -> Cluster:
    """A cluster in which version 3 is registered with its weights, and the policy is in force."""
    file, lineage = str(K8S / "platform" / "admission.yaml"), ("3", "0123456789ab")
    api.run("apply", "--filename", file)
    labels = dict(zip(("vargpt.io/version", "vargpt.io/weights"), lineage, strict=True))
    eventually(lambda: b"not a registered version" in serving_pod(api, labels))
    versions = json.dumps({"data": {"versions": ":".join(lineage)}})
    api.run("patch", "configmap", "registered-versions", "--patch", versions)
    # As when the platform is upgraded.
    api.run("apply", "--filename", file)
    eventually(lambda: b"pod/answers created" in serving_pod(api, labels))
    # It stays: an API server follows no ConfigMap for a policy that was deleted and made again.
    return api


def serving_pod(api: Cluster, labels: dict[str, str]) -> bytes:
    """What the server says to a serving pod with these labels of lineage."""
    [deployment] = [
        item
        for item in objects((K8S / "serving" / "deployment.yaml").read_text())
        if item["kind"] == "Deployment"
    ]
    template = deployment["spec"]["template"]
    lineage = {key: value for key, value in template["metadata"]["labels"].items() if "vargpt.io" not in key}
    # The account is not what this is about.
    spec = {**template["spec"], "serviceAccountName": "default"}
    metadata = {"name": "answers", "namespace": "vargpt", "labels": lineage | labels}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
    done = api.call("create", "--dry-run=server", "--filename", "-", data=json.dumps(pod).encode())
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ({}, b"serving pod needs the labels"),
        ({"vargpt.io/version": "3"}, b"serving pod needs the labels"),
        ({"vargpt.io/version": "4", "vargpt.io/weights": "0123456789ab"}, b"not a registered version"),
        ({"vargpt.io/version": "3", "vargpt.io/weights": "ffffffffffff"}, b"not a registered version"),
        ({"vargpt.io/version": "3", "vargpt.io/weights": "0123456789ab"}, b"pod/answers created"),
    ],
)
def test_only_a_serving_pod_with_the_lineage_of_a_registered_version_is_admitted(registered, labels, said):
    assert said in serving_pod(registered, labels)


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
    found.run("delete", "node", "--selector", "nvidia.com/gpu.present=true", "--wait=false")


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


def test_kueue_admits_one_stage_and_holds_the_next_until_it_has_ended(empty):
    for item in objects(empty.run("kustomize", str(K8S / "overlays" / "kueue"))):
        empty.apply(moved(item))
    submit(empty, K8S / "overlays" / "kueue" / "stage1.yaml")
    eventually(lambda: len(nodes_of(empty, "stage1")) == 4)
    submit(empty, K8S / "overlays" / "kueue" / "stage2.yaml")
    time.sleep(10)
    held = empty.get("pytorchjob", "stage2")

    assert held["spec"]["runPolicy"]["suspend"] is True
    assert not pods_of(empty, "stage2")

    empty.run("delete", "pytorchjob", "stage1")
    eventually(lambda: len(nodes_of(empty, "stage2")) == 4)


def test_every_folder_that_kubectl_can_apply_was_validated():
    assert {ROOT / "k8s" / name for name in ("platform", "serving", "overlays/tiny")} <= set(KUSTOMIZATIONS)
    assert {f"{stage}.yaml" for stage in STAGES} <= {path.name for path in FILES}
