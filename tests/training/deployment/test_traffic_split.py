"""Laws of the share of a canary where a Gateway's route divides the traffic."""

import copy

import pytest

from tests.training.submission.fake_api import FakeApi
from training.deployment.rollout import Deployments
from training.deployment.traffic_split import TrafficSplit, is_followed, weighed
from training.submission.api import ApiServer

ROUTE = {
    "metadata": {"name": "vargpt", "generation": 1, "resourceVersion": "7"},
    "spec": {
        "parentRefs": [{"name": "gateway"}],
        "rules": [
            {
                "matches": [{"path": {"value": "/v1"}}],
                "backendRefs": [
                    {"name": "vargpt-stable", "port": 80, "weight": 100},
                    {"name": "vargpt-canary", "port": 80, "weight": 0},
                ],
            },
            {"backendRefs": [{"name": "website", "port": 80}]},
            {"filters": [{"type": "RequestRedirect", "requestRedirect": {"scheme": "https"}}]},
        ],
    },
}


@pytest.fixture
def api(tmp_path, monkeypatch):
    made = FakeApi()
    monkeypatch.setenv("KUBECONFIG", str(made.kubeconfig(tmp_path)))
    yield made
    made.stop()


def split_of(api):
    return TrafficSplit(Deployments(ApiServer("ns"), lambda line: None))


def test_where_nothing_divides_traffic_it_says_so(api):
    assert split_of(api).set(10) is False


def test_the_sides_of_a_route_get_their_weights_and_all_else_stays_as_users_set_it(api):
    api.objects["httproutes", "vargpt"] = copy.deepcopy(ROUTE)

    assert split_of(api).set(10) is True

    expected = copy.deepcopy(ROUTE)
    stable, canary = expected["spec"]["rules"][0]["backendRefs"]
    stable["weight"], canary["weight"] = 90, 10
    assert api.objects["httproutes", "vargpt"] == expected


def test_a_route_that_somebody_else_changed_meanwhile_is_read_again(api, monkeypatch):
    api.objects["httproutes", "vargpt"] = copy.deepcopy(ROUTE)
    split = split_of(api)
    patch, versions = split._server.objects.patch_namespaced_custom_object, []

    def change_before_the_first(*arguments, **options):
        versions.append(arguments[-1]["metadata"]["resourceVersion"])
        if len(versions) == 1:
            api.objects["httproutes", "vargpt"]["metadata"]["resourceVersion"] = "8"
            api.objects["httproutes", "vargpt"]["spec"]["hostnames"] = ["example.org"]
            api.refuse.append((409, "the object has been modified"))
        return patch(*arguments, **options)

    monkeypatch.setattr(split._server.objects, "patch_namespaced_custom_object", change_before_the_first)

    assert split.set(10) is True

    assert versions == ["7", "8"]
    route = api.objects["httproutes", "vargpt"]["spec"]
    assert route["hostnames"] == ["example.org"]
    assert [side["weight"] for side in route["rules"][0]["backendRefs"]] == [90, 10]


@pytest.mark.parametrize("rule", ROUTE["spec"]["rules"][1:])
def test_a_rule_that_names_no_side_stays_as_it_is(rule):
    assert weighed(rule, {"vargpt-stable": 1, "vargpt-canary": 99}) == rule


@pytest.mark.parametrize(
    ("observed", "is_so"),
    [([], True), ([[2], [2]], True), ([[2], [1]], False), ([[2, 1]], False)],
)
def test_a_route_is_followed_once_every_gateway_has_seen_its_last_change(observed, is_so):
    parents = [{"conditions": [{"observedGeneration": seen} for seen in one]} for one in observed]

    assert is_followed({"metadata": {"generation": 2}, "status": {"parents": parents}}) is is_so
