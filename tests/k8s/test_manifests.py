"""What can be said of the manifests without a cluster."""

import re

import kubernetes_validate
import pytest
import yaml

from serving.config import Limits
from tests.k8s.manifests import (
    GENERATED,
    K8S,
    MANIFESTS,
    ROOT,
    SECRETS,
    TINY,
    containers,
    everything,
    named,
    objects,
    pod_object,
    pods,
    templates,
)
from training.cluster.images import image_names

# Kinds that an operator brings, whose schema lies in the cluster (test_validation.py asks it); the pods that
# they make are checked here.
OF_OPERATORS = (
    "kubeflow.org/",
    "trainer.kubeflow.org/",
    "kueue.x-k8s.io/",
    "monitoring.coreos.com/",
    "external-secrets.io/",
    "gateway.networking.k8s.io/",
)
# The oldest Kubernetes whose schema the manifests follow.
OLDEST = "1.31"
# Volume types that the restricted level of the pod security standards allows.
VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}


ALL_PODS = [
    pytest.param(pod, item, id=f"{path.parent.relative_to(K8S)}/{item['metadata']['name']}")
    for path, item in everything()
    for pod in pods(item)
]


@pytest.mark.parametrize("version", [OLDEST, kubernetes_validate.latest_version()])
@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: str(path.relative_to(K8S)))
def test_every_object_follows_the_schema_of_kubernetes_without_a_field_too_many(path, version):
    for item in objects(path):
        if item["apiVersion"].startswith(OF_OPERATORS):
            items = [pod_object(pod) for pod in pods(item)]
        else:
            items = [item]
        for found in items:
            kubernetes_validate.validate(found, version, strict=True)


def test_a_misspelt_field_of_a_job_is_found():
    [pod] = pods(objects(K8S / "stage1.yaml")[0])
    pod["containers"][0]["imagePullPolice"] = "Always"

    with pytest.raises(kubernetes_validate.ValidationError, match="imagePullPolice"):
        kubernetes_validate.validate(pod_object(pod), OLDEST, strict=True)


@pytest.mark.parametrize(
    "folder", ["platform", "platform/mlflow", "platform/postgres", "platform/object-store"]
)
def test_a_kustomization_lists_all_that_lies_in_its_folder(folder):
    listed = yaml.safe_load((K8S / folder / "kustomization.yaml").read_text())["resources"]

    assert {K8S / folder / name for name in listed if name.endswith(".yaml")} == {
        path for path in MANIFESTS if path.parent == K8S / folder
    }


def test_every_object_has_its_namespace_and_no_object_of_the_whole_cluster_has_one():
    for path, item in everything():
        is_global = item["kind"].startswith("ValidatingAdmission") or item["kind"] in (
            "Namespace",
            "PriorityClass",
            "WorkloadPriorityClass",
            "ResourceFlavor",
            "ClusterQueue",
        )
        assert item["metadata"].get("namespace") == (None if is_global else "vargpt"), (path, item["kind"])


def test_the_namespace_enforces_the_restricted_level():
    labels = named("Namespace", "vargpt")["metadata"]["labels"]

    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize(("pod", "item"), ALL_PODS)
def test_every_pod_is_restricted_and_cannot_write_to_its_root(pod, item):
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in containers(pod):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        }
    for volume in pod["volumes"]:
        assert set(volume) - {"name"} <= VOLUMES


@pytest.mark.parametrize(("pod", "item"), ALL_PODS)
def test_every_container_states_what_it_needs(pod, item):
    for container in containers(pod):
        assert {"cpu", "memory"} <= set(container["resources"]["requests"])
        assert "memory" in container["resources"]["limits"]


@pytest.mark.parametrize(("pod", "item"), ALL_PODS)
def test_every_pod_has_an_account_of_its_own_kind(pod, item):
    assert named("ServiceAccount", pod["serviceAccountName"])["automountServiceAccountToken"] is False


@pytest.mark.parametrize(("pod", "item"), ALL_PODS)
def test_every_reference_of_a_pod_resolves(pod, item):
    there = {(found["kind"], found["metadata"]["name"]) for _, found in everything()}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    claims = {claim["metadata"]["name"] for claim in item["spec"].get("volumeClaimTemplates", [])}

    for volume in volumes.values():
        if claim := volume.get("persistentVolumeClaim"):
            assert ("PersistentVolumeClaim", claim["claimName"]) in there
        if secret := volume.get("secret"):
            assert secret["secretName"] in SECRETS
        if found := volume.get("configMap"):
            assert ("ConfigMap", found["name"]) in there or found["name"] in GENERATED
    if priority := pod.get("priorityClassName"):
        assert ("PriorityClass", priority) in there
    for container in containers(pod):
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes.keys() | claims
        known = {variable["name"] for variable in container.get("env", [])}
        for variable in container.get("env", []):
            if secret := variable.get("valueFrom", {}).get("secretKeyRef"):
                assert secret["name"] in SECRETS
        for source in container.get("envFrom", []):
            if secret := source.get("secretRef"):
                assert secret["name"] in SECRETS
            else:
                known |= named("ConfigMap", source["configMapRef"]["name"])["data"].keys()
        for text in container.get("args", []):
            assert set(re.findall(r"\$\((\w+)\)", text)) <= known


def test_every_image_has_a_version_that_does_not_move():
    for name in image_names(ROOT).values():
        assert re.search(r"(@sha256:[0-9a-f]{64}|:v?\d+\.\d+\.\d+[\w.-]*)$", name), name


def test_traffic_is_split_between_the_same_services_by_a_route_as_by_the_front():
    [rule] = named("HTTPRoute", "vargpt")["spec"]["rules"]
    config = named("ConfigMap", "front")["data"]["haproxy.cfg"]
    servers = re.findall(r"server \w+ (\S+):(\d+) weight", config)

    assert [(side["name"], str(side["port"])) for side in rule["backendRefs"]] == servers
    assert [side["weight"] for side in rule["backendRefs"]] == [100, 0]
    for name, port in servers:
        assert named("Service", name)["spec"]["ports"][0]["port"] == int(port)


def test_applying_the_service_again_changes_neither_its_version_nor_how_many_pods_it_has():
    deployment = named("Deployment", "vargpt")["spec"]
    patches = (TINY / "serving" / "kustomization.yaml").read_text()

    assert "replicas" not in deployment and "/spec/replicas" not in patches
    assert not [label for label in deployment["template"]["metadata"]["labels"] if "vargpt.io/" in label]


def test_every_image_is_named_in_one_place_and_runs_as_its_own_user():
    names = image_names(ROOT)
    rendered = {names["vargpt-training"], names["vargpt-packaging"]}

    for path, item in everything():
        for pod in pods(item):
            assert pod["securityContext"]["runAsUser"] == 10001
            for container in containers(pod):
                allowed = rendered if "Rendered by" in path.read_text() else names.keys()
                assert container["image"] in allowed, path
    for file in (K8S / "images").glob("*Dockerfile"):
        stages = re.findall(r"^USER (.+)$", file.read_text(), re.MULTILINE)
        assert stages and set(stages) == {"10001:10001"}, file


def test_everything_that_may_be_reached_in_the_namespace_is_listed():
    policies = [item for _, item in everything() if item["kind"] == "NetworkPolicy"]
    [deny] = [item for item in policies if item["metadata"]["name"] == "default-deny"]
    labels = [template["metadata"]["labels"] for _, item in everything() for template in templates(item)]

    assert deny["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for policy in policies:
        wanted = policy["spec"]["podSelector"].get("matchLabels", {})
        assert any(wanted.items() <= found.items() for found in labels), (
            f"{policy['metadata']['name']}: no pod"
        )


def test_pods_of_other_namespaces_reach_the_service_and_its_front_alone():
    open_ports = {"serving": 3000, "front": 8080}
    for _, item in everything():
        if item["kind"] == "NetworkPolicy":
            for rule in item["spec"].get("ingress", []):
                # Without a list of sources there are all.
                if any(
                    source.get("namespaceSelector") == {}
                    for source in rule.get("from", [{"namespaceSelector": {}}])
                ):
                    port = open_ports[item["metadata"]["name"]]
                    assert rule["ports"] == [{"protocol": "TCP", "port": port}]


def test_jobs_find_the_tracking_server_under_a_name_that_it_answers_to():
    address = named("ConfigMap", "vargpt")["data"]["MLFLOW_TRACKING_URI"].removeprefix("http://")
    [port] = named("Service", "mlflow")["spec"]["ports"]
    [pod] = pods(named("Deployment", "mlflow"))
    [container] = pod["containers"]
    [hosts] = [entry["value"] for entry in container["env"] if entry["name"] == "MLFLOW_SERVER_ALLOWED_HOSTS"]

    assert address == f"mlflow:{port['port']}"
    assert {"mlflow", address, "mlflow.vargpt.svc.cluster.local", "localhost"} <= set(hosts.split(","))
    assert {"name": "Host", "value": address} in container["readinessProbe"]["httpGet"]["httpHeaders"]


def test_the_service_loses_no_request_when_a_pod_goes():
    deployment = named("Deployment", "vargpt")["spec"]
    pod = deployment["template"]["spec"]
    [container] = pod["containers"]
    pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]

    assert deployment["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    assert pod["terminationGracePeriodSeconds"] >= pause + Limits().deadline_seconds
    assert container["livenessProbe"]["httpGet"]["path"] != container["readinessProbe"]["httpGet"]["path"]
    assert named("PodDisruptionBudget", "vargpt")["spec"]["maxUnavailable"] == 1
