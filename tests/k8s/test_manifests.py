"""What can be said of the manifests without a cluster."""

import json
import re
import subprocess

import kubernetes_validate
import pytest
import yaml

from serving.config import Limits
from tests.k8s.manifests import (
    K8S,
    MANIFESTS,
    ROOT,
    STAGES,
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
# Made by the user (k8s/platform/secrets.sh), by an operator's webhook, or from files of a kustomization.
SECRETS = {"postgres", "mlflow", "object-store", "mlflow-trainer", "mlflow-promoter", "dvc-remote"}
GENERATED = {"mlflow-scripts"}


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


def test_no_secret_is_in_a_manifest_but_those_of_a_laptop():
    assert not [path for path, item in everything() if item["kind"] == "Secret"]
    made = {name for name in SECRETS if f"secret {name}" in (K8S / "platform" / "secrets.sh").read_text()}
    tiny = yaml.safe_load((TINY / "kustomization.yaml").read_text())["secretGenerator"]

    # The account of a remote is the user's own.
    assert made | {"mlflow-trainer", "mlflow-promoter"} == SECRETS - {"dvc-remote"}
    assert {secret["name"] for secret in tiny} == SECRETS - {"dvc-remote"}


def test_every_secret_can_come_from_a_vault_under_its_name():
    found = [item for _, item in everything() if item["kind"] == "ExternalSecret"]

    assert {item["metadata"]["name"] for item in found} == SECRETS
    for item in found:
        assert item["spec"]["target"]["name"] == item["metadata"]["name"]
        assert item["spec"]["dataFrom"] == [{"extract": {"key": f"vargpt/{item['metadata']['name']}"}}]


@pytest.mark.parametrize(
    ("kind", "name", "container"), [("Deployment", "mlflow", "mlflow"), ("Job", "mlflow-migrate", "migrate")]
)
def test_where_artifacts_lie_can_be_said_by_the_secret_of_the_object_store(kind, name, container):
    [pod] = pods(named(kind, name))
    [found] = [one for one in pod["containers"] if one["name"] == container]

    # Of a variable that several sources have, the last one's value counts.
    assert found["envFrom"] == [{"configMapRef": {"name": "mlflow"}}, {"secretRef": {"name": "object-store"}}]
    assert "MLFLOW_S3_ENDPOINT_URL" in named("ConfigMap", "mlflow")["data"]
    assert not [entry for entry in found["env"] if entry["name"] == "MLFLOW_S3_ENDPOINT_URL"]


def test_a_secret_is_made_with_the_endpoint_that_the_environment_names(tmp_path):
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/said\n[ "$3" != get ] && echo created\n')
    kubectl.chmod(0o755)
    for endpoint in ({}, {"MLFLOW_S3_ENDPOINT_URL": "https://s3.example", "BUCKET": "models"}):
        environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", **endpoint}
        script = ["sh", str(K8S / "platform" / "secrets.sh")]
        subprocess.run(script, env=environment, check=True, capture_output=True)
    lines = (tmp_path / "said").read_text().splitlines()
    without, given = [line for line in lines if "create secret generic object-store" in line]

    assert "MLFLOW_S3_ENDPOINT_URL" not in without and "BUCKET" not in without
    assert "--from-literal=MLFLOW_S3_ENDPOINT_URL=https://s3.example --from-literal=BUCKET=models" in given


def test_no_program_with_mlflow_unpickles_what_it_is_given():
    for name in ("vargpt", "mlflow"):
        assert named("ConfigMap", name)["data"]["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"


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


def policy_text(name: str) -> str:
    """What an admission policy says."""
    return json.dumps(named("ValidatingAdmissionPolicy", name)["spec"])


def test_every_settings_map_of_the_platform_is_closed_to_who_only_writes_parameters():
    maps = {item["metadata"]["name"] for _, item in everything() if item["kind"] == "ConfigMap"} | GENERATED
    listed = re.search(r"object\.metadata\.name in (\[[^]]+\])", policy_text("vargpt-settings"))

    assert set(yaml.safe_load(listed[1])) == maps


def test_every_secret_but_those_of_training_and_every_volume_of_the_registry_is_asked_for():
    text = policy_text("vargpt-credentials")
    trains = {
        source["secretRef"]["name"]
        for stage in STAGES
        for pod in pods(objects(K8S / f"{stage}.yaml")[0])
        for container in containers(pod)
        for source in container["envFrom"]
        if "secretRef" in source
    }
    [database] = named("StatefulSet", "postgres")["spec"]["volumeClaimTemplates"]

    assert trains == {"mlflow-trainer"}
    assert "['', 'mlflow-trainer', 'dvc-remote']" in text
    assert "['', 'default', 'trainer']" in text
    assert f"['models', 'objects', '{database['metadata']['name']}-postgres-0']" in text


def test_a_role_may_use_what_its_jobs_are_made_of_and_no_other_has_the_verb():
    roles = {item["metadata"]["name"]: item["rules"] for _, item in everything() if item["kind"] == "Role"}
    used = {
        (role, resource, name)
        for role, rules in roles.items()
        for rule in rules
        for resource in rule["resources"]
        for name in rule.get("resourceNames", ["any"])
        if "use" in rule["verbs"]
    }

    assert used == {
        ("releaser", "serviceaccounts", "promoter"),
        ("releaser", "secrets", "mlflow-promoter"),
        ("releaser", "persistentvolumeclaims", "models"),
        ("deployer", "serviceaccounts", "serving"),
    }


def test_the_service_loses_no_request_when_a_pod_goes():
    deployment = named("Deployment", "vargpt")["spec"]
    pod = deployment["template"]["spec"]
    [container] = pod["containers"]
    pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]

    assert deployment["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    assert pod["terminationGracePeriodSeconds"] >= pause + Limits().deadline_seconds
    assert container["livenessProbe"]["httpGet"]["path"] != container["readinessProbe"]["httpGet"]["path"]
    assert named("PodDisruptionBudget", "vargpt")["spec"]["maxUnavailable"] == 1
