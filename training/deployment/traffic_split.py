"""How traffic is divided between the deployed version and its canary: by a front's weights, or by a route's.

The front is the HAProxy of k8s/canary, whose weights are variables of its pods; the route is the HTTPRoute of
k8s/overlays/gateway, for a Gateway that the cluster has already.
"""

import time
from collections.abc import Mapping
from typing import Any

from training.deployment.rollout import Deployments
from training.submission.api import REQUEST_SECONDS, is_conflict

FRONT = "front"
ROUTE = ("gateway.networking.k8s.io", "v1", "httproutes")
ROUTE_NAME = "vargpt"
STABLE_SIDE, CANARY_SIDE = "vargpt-stable", "vargpt-canary"
# How long a Gateway may take to follow its route.
FOLLOW_SECONDS = 30.0


class TrafficSplit:
    """What divides the traffic of one namespace, as far as there is anything."""

    def __init__(self, deployments: Deployments) -> None:
        self._deployments, self._server = deployments, deployments.server

    def set(self, percent: int) -> bool:
        """Sends so much of all traffic to the canary, and waits until that is so.

        Returns:
            False where neither a front nor a route is there; nothing has changed then.
        """
        weights = {STABLE_SIDE: 100 - percent, CANARY_SIDE: percent}
        front = self._deployments.find(FRONT)
        if front is not None:
            self._weigh_front(front, weights)
        return self._weigh_route(weights) or front is not None

    def _weigh_front(self, front: Any, weights: Mapping[str, int]) -> None:
        env = [
            {"name": "STABLE_WEIGHT", "value": str(weights[STABLE_SIDE])},
            {"name": "CANARY_WEIGHT", "value": str(weights[CANARY_SIDE])},
        ]
        name = front.spec.template.spec.containers[0].name
        body = {"spec": {"template": {"spec": {"containers": [{"name": name, "env": env}]}}}}
        self._deployments.patch(FRONT, body)
        self._deployments.wait(FRONT)

    def _find_route(self) -> dict[str, Any] | None:
        """The route; None where it, or the Gateway API itself, is not there."""
        group, version, plural = ROUTE
        get = self._server.objects.get_namespaced_custom_object
        place = (group, version, self._server.namespace, plural)
        return self._server.find(get, *place, ROUTE_NAME, _request_timeout=REQUEST_SECONDS)

    def _weigh_route(self, weights: Mapping[str, int]) -> bool:
        """Changes the weights of both sides in every rule, and nothing else that users have set.

        Returns:
            False where there is no route.
        """
        from kubernetes.client import ApiException

        while (route := self._find_route()) is not None:
            try:
                self._patch_route(route, weights)
                break
            except ApiException as error:
                # A Gateway has written what it has seen of the route, or a user has changed it.
                if not is_conflict(error):
                    raise
        until = time.monotonic() + FOLLOW_SECONDS
        while route and not is_followed(self._find_route() or {}) and time.monotonic() < until:
            time.sleep(1)
        return route is not None

    def _patch_route(self, route: dict[str, Any], weights: Mapping[str, int]) -> None:
        group, version, plural = ROUTE
        patch = self._server.objects.patch_namespaced_custom_object
        place = (group, version, self._server.namespace, plural)
        # Rules are replaced as a whole: the version makes sure that they are those that were read.
        body = {
            "metadata": {"resourceVersion": route["metadata"]["resourceVersion"]},
            "spec": {"rules": [weighed(rule, weights) for rule in route["spec"]["rules"]]},
        }
        self._server.ask(patch, *place, ROUTE_NAME, body, _request_timeout=REQUEST_SECONDS)


def weighed(rule: Mapping[str, Any], weights: Mapping[str, int]) -> dict[str, Any]:
    """A rule of a route, with these weights of the sides that it names."""
    if "backendRefs" not in rule:
        # It sends requests elsewhere.
        return dict(rule)
    sides = [
        {**side, "weight": weights[side["name"]]} if side["name"] in weights else side
        for side in rule["backendRefs"]
    ]
    return {**rule, "backendRefs": sides}


def is_followed(route: Mapping[str, Any]) -> bool:
    """Whether every Gateway that has taken a route in says so of its present generation."""
    parents = route.get("status", {}).get("parents", [])
    return all(
        condition.get("observedGeneration", 0) >= route["metadata"]["generation"]
        for parent in parents
        for condition in parent.get("conditions", [])
    )
