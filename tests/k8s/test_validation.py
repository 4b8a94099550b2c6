"""What a real API server and its admission make of the manifests; nothing is kept, no container runs."""

import json
import subprocess
import time
from typing import Any

import pytest
import yaml

from tests.k8s.cluster import K8S, ROOT, Cluster, eventually, objects

pytestmark = pytest.mark.cluster

KUSTOMIZATIONS = sorted(
    path.parent
    for path in K8S.rglob("kustomization.yaml")
    if yaml.safe_load(path.read_text())["kind"] == "Kustomization" and path.parent.name != "external-secrets"
)
# Rendered jobs, which are applied one by one.
FILES = sorted(path for path in K8S.rglob("*.yaml") if "Rendered by" in path.read_text())
STAGES = ("stage1", "stage2", "stage3")


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
    validate(api, objects(api.run("kustomize", str(folder))))


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


def test_every_folder_that_kubectl_can_apply_was_validated():
    assert {ROOT / "k8s" / name for name in ("platform", "serving", "overlays/tiny")} <= set(KUSTOMIZATIONS)
    assert {f"{stage}.yaml" for stage in STAGES} <= {path.name for path in FILES}
