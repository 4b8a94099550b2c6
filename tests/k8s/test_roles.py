"""What each role may do and what admission refuses it, by acting under its account on a real cluster."""

import json
from typing import Any

import pytest
import yaml

from tests.k8s.cluster import K8S, TINY, Cluster, define, eventually, idle_pod

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

SUBMITTER, RELEASER, DEPLOYER = "submitter", "releaser", "deployer"


def acting_as(account: str) -> str:
    """The option of kubectl with which an administrator acts as an account of the namespace."""
    return f"--as=system:serviceaccount:vargpt:{account}"


def may(cluster: Cluster, account: str, verb: str, what: str) -> bool:
    """What the roles say; admission comes on top."""
    return cluster.call("auth", "can-i", verb, what, acting_as(account)).returncode == 0


def attempt(cluster: Cluster, account: str, item: dict[str, Any]) -> str:
    """What the server says to an account that makes an object, which is not kept."""
    done = cluster.call(
        "create", "--dry-run=server", "--filename", "-", acting_as(account), data=json.dumps(item).encode()
    )
    return (done.stdout + done.stderr).decode()


def job(name: str) -> dict[str, Any]:
    """A rendered job as a submitter would make it, under a name that is free."""
    [item] = [found for found in yaml.safe_load_all((TINY / f"{name}.yaml").read_text()) if found]
    return item | {"metadata": item["metadata"] | {"name": "attempted"}}


def pod_with(**spec: Any) -> dict[str, Any]:
    """A pod with these fields."""
    found = idle_pod("attempted", "vargpt", {}, None)
    return found | {"spec": found["spec"] | spec}


def settings(name: str, **labels: str) -> dict[str, Any]:
    """A ConfigMap that is not there yet."""
    metadata = {"name": name, "namespace": "vargpt", "labels": labels}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}


@pytest.mark.parametrize(
    ("account", "verb", "what", "is_allowed"),
    [
        (SUBMITTER, "create", "pytorchjobs.kubeflow.org", True),
        (SUBMITTER, "create", "jobs.batch", True),
        (SUBMITTER, "get", "secrets/mlflow-promoter", False),
        (SUBMITTER, "patch", "deployments.apps/vargpt", False),
        (SUBMITTER, "use", "serviceaccounts/promoter", False),
        (RELEASER, "create", "jobs.batch", True),
        (RELEASER, "use", "serviceaccounts/promoter", True),
        (RELEASER, "configure", "configmaps/registered-versions", False),
        (DEPLOYER, "patch", "deployments.apps/vargpt", True),
        (DEPLOYER, "patch", "deployments.apps/mlflow", False),
        (DEPLOYER, "patch", "configmaps/registered-versions", True),
        (DEPLOYER, "patch", "configmaps/vargpt", False),
        (DEPLOYER, "create", "jobs.batch", False),
        (DEPLOYER, "use", "secrets/mlflow-promoter", False),
        *((account, "create", "pods", False) for account in ("trainer", "promoter", "serving", "tracking")),
    ],
)
def test_an_account_has_the_roles_of_its_work_and_no_more(platform, account, verb, what, is_allowed):
    assert may(platform, account, verb, what) == is_allowed


def test_a_deployer_sets_the_weights_of_our_route_and_of_no_other(platform):
    with define(platform, "httproute"):
        assert may(platform, DEPLOYER, "patch", "httproutes.gateway.networking.k8s.io/vargpt")
        assert not may(platform, DEPLOYER, "patch", "httproutes.gateway.networking.k8s.io/website")


@pytest.fixture(scope="module")
def guarded(platform: Cluster) -> Cluster:
    """The platform once its policies are in force, which is a moment after they were made."""
    pod = pod_with(serviceAccountName="promoter")
    eventually(lambda: "needs the verb use" in attempt(platform, SUBMITTER, pod))
    labelled = settings("release-0", **{"vargpt.io/stage": "release"})
    eventually(lambda: "account promoter" in attempt(platform, SUBMITTER, labelled))
    return platform


@pytest.mark.parametrize("name", ["stage1", "backbones"])
def test_a_submitter_makes_the_jobs_of_the_stages(guarded, name):
    assert "attempted created" in attempt(guarded, SUBMITTER, job(name))


def test_a_release_is_made_by_a_releaser_and_not_by_a_submitter(guarded):
    assert "under the account promoter needs the verb use" in attempt(guarded, SUBMITTER, job("pipeline"))
    assert "attempted created" in attempt(guarded, RELEASER, job("pipeline"))


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({}, "pod/attempted created"),
        ({"serviceAccountName": "trainer"}, "pod/attempted created"),
        *(
            ({"serviceAccountName": account}, f"under the account {account} needs the verb use")
            for account in ("promoter", "tracking", "deployer", "releaser")
        ),
        ({"volumes": [{"name": "a", "secret": {"secretName": "mlflow-promoter"}}]}, "mounts another secret"),
        (
            {"volumes": [{"name": "a", "projected": {"sources": [{"secret": {"name": "mlflow"}}]}}]},
            "mounts another secret",
        ),
        (
            {"volumes": [{"name": "a", "persistentVolumeClaim": {"claimName": "models"}}]},
            "writes to a volume of the registry",
        ),
        (
            {"volumes": [{"name": "a", "persistentVolumeClaim": {"claimName": "models", "readOnly": True}}]},
            "pod/attempted created",
        ),
    ],
)
def test_a_submitters_pod_has_no_more_than_what_trains(guarded, spec, said):
    assert said in attempt(guarded, SUBMITTER, pod_with(**spec))


@pytest.mark.parametrize("secret", ["mlflow-promoter", "mlflow", "postgres", "object-store"])
def test_no_secret_of_the_platform_gets_into_the_environment_of_a_submitters_pod(guarded, secret):
    pod = idle_pod("attempted", "vargpt", {}, secret)
    assert "environment has another secret" in attempt(guarded, SUBMITTER, pod)

    [container] = pod["spec"]["containers"]
    reference = {"secretKeyRef": {"name": secret, "key": "any"}}
    container |= {"envFrom": [], "env": [{"name": "STOLEN", "valueFrom": reference}]}
    assert "environment has another secret" in attempt(guarded, SUBMITTER, pod)


@pytest.mark.parametrize("name", ["mlflow", "postgres", "object-store", "vargpt-serving", "vargpt-front"])
def test_a_submitters_pod_is_not_taken_for_one_of_the_platform(guarded, name):
    pod = idle_pod("attempted", "vargpt", {"app.kubernetes.io/name": name}, None)

    assert "with the labels of the account" in attempt(guarded, SUBMITTER, pod)


def test_an_operator_gives_no_pod_the_promoting_account_either(guarded):
    item = job("stage1")
    item["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["serviceAccountName"] = "promoter"
    data = json.dumps(item).encode()
    guarded.run("create", "--filename", "-", acting_as(SUBMITTER), data=data)

    def is_refused() -> bool:
        events = guarded.get("events", "--field-selector", "involvedObject.name=attempted")["items"]
        return any("needs the verb use" in event["message"] for event in events)

    try:
        eventually(is_refused)
        selector = "training.kubeflow.org/job-name=attempted"
        assert not guarded.get("pods", "--selector", selector)["items"]
    finally:
        guarded.run("delete", "pytorchjob", "attempted")


@pytest.mark.parametrize("name", ["registered-versions", "vargpt", "mlflow", "mlflow-scripts"])
def test_a_submitter_writes_parameters_and_none_of_the_platforms_settings(guarded, name):
    patch = ("patch", "configmap", name, "--dry-run=server", "--patch", '{"data": {"versions": "1:0"}}')
    done = guarded.call(*patch, acting_as(SUBMITTER))

    assert f"writing the ConfigMap {name} needs the verb configure" in done.stderr.decode()
    assert "created" in attempt(guarded, SUBMITTER, settings("stage1-0", **{"vargpt.io/stage": "stage1"}))


def test_a_deployer_writes_the_list_of_registered_versions(guarded):
    patch = ("patch", "configmap", "registered-versions", "--patch", '{"data": {"versions": ""}}')

    guarded.run(*patch, "--dry-run=server", acting_as(DEPLOYER))
    assert guarded.call(*patch, "--dry-run=server", acting_as(RELEASER)).returncode


def test_only_a_releaser_writes_the_parameters_of_a_release(guarded):
    release = settings("release-0", **{"vargpt.io/stage": "release"})

    assert "may use the account promoter" in attempt(guarded, SUBMITTER, release)
    assert "configmap/release-0 created" in attempt(guarded, RELEASER, release)


def test_a_deployer_makes_a_canary_and_gives_it_no_secret(guarded):
    [canary] = yaml.safe_load_all((K8S / "serving" / "deployment.yaml").read_text())
    canary["metadata"]["name"] = "vargpt-canary"
    assert "vargpt-canary created" in attempt(guarded, DEPLOYER, canary)

    [container] = canary["spec"]["template"]["spec"]["containers"]
    container["envFrom"] = [{"secretRef": {"name": "mlflow"}}]
    assert "environment has another secret" in attempt(guarded, DEPLOYER, canary)
