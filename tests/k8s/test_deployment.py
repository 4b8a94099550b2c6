"""`vargpt deploy` on a real cluster: rollouts and canaries of a small server in place of the service.

It answers as the service does (readiness, metrics, replies) and fails as its version says, which no real
version would do when told to.
"""

from collections.abc import Iterator

import pytest

from tests.k8s.cluster import Cluster, eventually, new_namespace
from tests.k8s.small_service import VERSIONED, Clients, small_service

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

NAMESPACE = "deployment"
CANARY = ("--canary", "10", "--observe", "20", "--min-requests", "5")


@pytest.fixture(scope="module")
def cluster(cluster_with_image: Cluster) -> Iterator[Cluster]:
    """A namespace in which a service runs."""
    with new_namespace(cluster_with_image, NAMESPACE, *small_service(VERSIONED)) as found:
        # Before its first pod answers, a service has nobody to ask.
        found.run("rollout", "status", "deployment/vargpt", "--timeout", "120s")
        yield found


@pytest.fixture
def clients(cluster):
    with Clients(cluster, 8) as made:
        yield made


def labels(cluster: Cluster) -> dict[str, str]:
    """Of the pods of the service."""
    return cluster.get("deployment", "vargpt")["spec"]["template"]["metadata"]["labels"]


def test_the_champion_is_rolled_out_with_its_lineage_and_no_request_fails(deploy, cluster, clients):
    assert deploy("1")[0] == 0

    code, said = deploy("4")

    assert code == 0, said
    assert labels(cluster)["vargpt.io/version"] == "4" and labels(cluster)["vargpt.io/weights"] == "4" * 12
    assert set(clients.answers) == {200}


def test_a_version_that_does_not_start_says_why_and_changes_nothing(deploy, cluster, clients):
    assert deploy("1")[0] == 0

    code, said = deploy("3")

    assert code == 2
    assert "does not come up" in said and "the weights of version 3 are damaged" in said
    assert labels(cluster)["vargpt.io/version"] == "1"
    assert set(clients.answers) == {200}


def test_a_canary_that_fails_is_taken_back_and_not_rolled_out_later(deploy, cluster, clients):
    assert deploy("1")[0] == 0

    code, said = deploy("2", *CANARY)

    assert code == 2
    assert "was tried and not taken: 100.0% of its requests failed, of the other's 0.0%" in said
    assert labels(cluster)["vargpt.io/version"] == "1"
    # What it answered itself, and nothing else.
    assert set(clients.answers) == {200, 500}
    code, said = deploy("2")
    assert code == 2 and "was tried and not taken" in said and "vargpt rollback" in said
    assert labels(cluster)["vargpt.io/version"] == "1"


def test_a_canary_that_is_slow_is_taken_back_and_one_that_is_good_goes_on_and_no_request_fails(
    deploy, client, cluster, clients
):
    assert deploy("1")[0] == 0

    code, said = deploy(None, *CANARY, "--version", "5")
    assert code == 2
    assert "was tried and not taken: its replies take 1.00 s, the other's 0.02 s" in said
    assert labels(cluster)["vargpt.io/version"] == "1"

    code, said = deploy(None, *CANARY, "--version", "4")
    assert code == 0, said
    assert labels(cluster)["vargpt.io/version"] == "4"
    assert str(client.get_registered_model("vargpt").aliases["champion"]) == "4"
    assert "vargpt-canary" not in cluster.run("get", "deployments").decode()
    assert set(clients.answers) == {200}


def test_a_canary_whose_figures_are_worse_is_refused_by_the_gate_before_it_starts(deploy, cluster):
    assert deploy("1")[0] == 0

    code, said = deploy(None, *CANARY, "--version", "6")

    assert code == 2
    assert "not taken: draw.all_right: failed by 0.0050: 0.9450, must be at least 0.9500" in said
    assert labels(cluster)["vargpt.io/version"] == "1"


def test_rollback_returns_to_the_champion_before_and_no_request_fails(deploy, client, cluster, clients):
    assert deploy("1")[0] == 0
    client.set_registered_model_tag("vargpt", "vargpt.champions", "1,4")
    assert deploy("4")[0] == 0

    code, said = deploy(None, "--rollback")

    assert code == 0, said
    assert labels(cluster)["vargpt.io/version"] == "1"
    assert set(clients.answers) == {200}


@pytest.fixture
def two_pods(deploy, cluster):
    """A service that has another pod when one is killed."""
    assert deploy("1")[0] == 0
    cluster.run("scale", "deployment/vargpt", "--replicas", "2")
    cluster.run("rollout", "status", "deployment/vargpt", "--timeout", "120s")
    yield
    cluster.run("scale", "deployment/vargpt", "--replicas", "1")
    cluster.run("rollout", "status", "deployment/vargpt", "--timeout", "120s")


def test_of_a_killed_pod_only_the_requests_fail_that_it_was_answering(two_pods, cluster, clients):
    eventually(lambda: len(clients.answers) > 100)
    pods = cluster.get("pods", "--selector", "app.kubernetes.io/name=vargpt-serving")["items"]
    killed = next(pod["metadata"] for pod in pods if "deletionTimestamp" not in pod["metadata"])

    cluster.run("delete", "pod", killed["name"], "--grace-period", "0", "--force")
    cluster.run("rollout", "status", "deployment/vargpt", "--timeout", "120s")
    before = len(clients.answers)
    eventually(lambda: len(clients.answers) > before + 300)

    # A client asks one thing at a time.
    assert sum(answer != 200 for answer in clients.answers) <= clients.count
    assert set(clients.answers[-100:]) == {200}
