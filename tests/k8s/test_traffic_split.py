"""The share of a canary on a real cluster: by the weights of k8s/canary's front, and by those of a Gateway's
route.
"""

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.k8s.cluster import K8S, Cluster, build, define, eventually, new_namespace, objects
from tests.k8s.small_service import VERSIONED, Clients, small_service

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

NAMESPACE = "traffic"
CANARY = ("--canary", "10", "--observe", "30", "--min-requests", "5")


def moved(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Objects of ours as they are, in the namespace of these tests, which has no accounts."""
    for item in items:
        item["metadata"]["namespace"] = NAMESPACE
        if item["kind"] == "Deployment":
            pod = item["spec"]["template"]["spec"]
            del pod["serviceAccountName"], pod["priorityClassName"]
    return items


def rendered(cluster: Cluster, folder: str) -> list[dict[str, Any]]:
    """The objects of a kustomization."""
    return objects(cluster.run("kustomize", str(K8S / folder)))


@pytest.fixture(scope="module")
def service(cluster_with_image: Cluster) -> Iterator[Cluster]:
    """A namespace in which a service runs, under the platform's network policies."""
    policies = objects((K8S / "platform" / "network.yaml").read_text())
    items = [*moved(policies), *small_service(VERSIONED)]
    with new_namespace(cluster_with_image, NAMESPACE, *items) as found:
        found.run("rollout", "status", "deployment/vargpt", "--timeout", "120s")
        yield found


@pytest.fixture
def cluster(service: Cluster) -> Cluster:
    """The same, with version 1 and nothing that divides traffic."""
    return service


@pytest.fixture
def front(cluster: Cluster) -> Iterator[Cluster]:
    """k8s/canary, with the image of its HAProxy."""
    if cluster.script:
        build(cluster.script, "haproxy")
    items = moved(rendered(cluster, "canary"))
    cluster.apply(*items)
    cluster.run("rollout", "status", "deployment/front", "--timeout", "120s")
    yield cluster
    for item in items:
        cluster.run("delete", item["kind"], item["metadata"]["name"])


@pytest.fixture
def route(cluster: Cluster) -> Iterator[Cluster]:
    """k8s/overlays/gateway; no Gateway follows it."""
    with define(cluster, "httproute"):
        items = moved(rendered(cluster, "overlays/gateway"))
        cluster.apply(*items)
        yield cluster
        for item in items:
            cluster.run("delete", item["kind"], item["metadata"]["name"])


def weights(cluster: Cluster) -> tuple[int, ...]:
    """Of the route's sides."""
    [rule] = cluster.get("httproute", "vargpt")["spec"]["rules"]
    return tuple(side["weight"] for side in rule["backendRefs"])


def test_a_front_sends_a_canary_its_share_of_the_requests_and_none_fails(front, deploy, record_property):
    with Clients(front, 8, service="front") as clients:
        assert deploy("1")[0] == 0
        eventually(lambda: len(clients.texts) > 100)
        before = len(clients.texts)
        code, said = deploy(None, *CANARY, "--version", "4")
        during = clients.texts[before:]
        eventually(lambda: set(clients.texts[-100:]) == {"4"})

    assert code == 0, said
    assert "vargpt-canary gets 10 of 100 requests" in said
    assert set(clients.answers) == {200}
    record_property("requests", len(clients.answers))
    # While it starts a canary has no share, and in the end it has all.
    asked = said[said.index("requests ") :].split()
    stable, canary = int(asked[1]), int(asked[3].rstrip(","))
    record_property("share_of_the_canary", round(canary / (stable + canary), 3))
    assert 0.08 < canary / (stable + canary) < 0.12
    assert {"1", "4"} <= set(during)


def test_a_canary_that_fails_gets_no_more_requests_from_the_front(front, deploy):
    assert deploy("1")[0] == 0
    with Clients(front, 8, service="front") as clients:
        eventually(lambda: len(clients.answers) > 100)
        code, said = deploy(None, *CANARY, "--version", "2")
        before = len(clients.answers)
        eventually(lambda: len(clients.answers) > before + 300)

    assert code == 2 and "100.0% of its requests failed" in said
    assert set(clients.answers) == {200, 500}
    assert 0 < clients.answers.count(500) < 0.15 * len(clients.answers)
    assert set(clients.answers[before:]) == {200}


def test_the_weights_of_a_route_follow_a_canary_and_go_back(route, deploy):
    assert deploy("1")[0] == 0
    seen, is_over = [weights(route)], threading.Event()

    def watch() -> None:
        while not is_over.wait(1):
            seen.append(weights(route))

    watching = threading.Thread(target=watch)
    watching.start()
    with Clients(route, 8):
        code, said = deploy(None, *CANARY, "--version", "4")
    is_over.set()
    watching.join()

    assert code == 0, said
    assert list(dict.fromkeys(seen)) == [(100, 0), (90, 10)]
    assert weights(route) == (100, 0)
