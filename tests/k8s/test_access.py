"""Secrets, and who may give them to pods, as far as the manifests say it; test_roles.py asks a cluster."""

import json
import re
import subprocess

import pytest
import yaml

from tests.k8s.manifests import (
    GENERATED,
    K8S,
    SECRETS,
    STAGES,
    TINY,
    containers,
    everything,
    named,
    objects,
    pods,
)


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
