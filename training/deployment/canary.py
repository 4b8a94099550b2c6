"""Canary: a second Deployment of another version gets a share of the traffic and is compared with the first.

Traffic is split by weights of the front (k8s/canary) where that is there; without it, the service sends
requests to all pods alike, so that the share follows from how many there are.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from model.errors import UserError
from training.deployment.lineage_labels import Lineage
from training.deployment.rollout import Deployments
from training.deployment.service_metrics import Traffic, traffic_of
from training.submission.api import REQUEST_SECONDS, ApiServer

STABLE, CANARY, FRONT = "vargpt", "vargpt-canary", "front"
NAME_LABEL = "app.kubernetes.io/name"
POLL_SECONDS = 5.0


@dataclass(frozen=True)
class CanaryRules:
    """When a canary is as good as what it may replace.

    Args:
        observe_seconds: How long both are compared.
        min_requests: Of the canary, below which nothing is decided.
        error_margin: By how much its share of errors may be greater.
        latency_factor, latency_seconds: Its mean latency may be so many times the other's, and so much more.
    """

    observe_seconds: float = 120.0
    min_requests: int = 20
    error_margin: float = 0.01
    latency_factor: float = 1.5
    latency_seconds: float = 0.1

    def objection(self, stable: Traffic, canary: Traffic) -> str | None:
        """Why a canary is not as good; None if it is."""
        if canary.requests < self.min_requests:
            return f"it had {canary.requests:.0f} requests, {self.min_requests} are needed to tell"
        if canary.error_share > stable.error_share + self.error_margin:
            return f"{canary.error_share:.1%} of its requests failed, of the other's {stable.error_share:.1%}"
        most = stable.latency * self.latency_factor + self.latency_seconds
        if stable.replies and canary.latency > most:
            return f"its replies take {canary.latency:.2f} s, the other's {stable.latency:.2f} s"
        return None


class Canary:
    """One trial of a version beside the one that is deployed.

    Args:
        say: Takes a line for the user.
    """

    def __init__(self, server: ApiServer, say: Callable[[str], None]) -> None:
        self.server, self.say = server, say
        self.deployments = Deployments(server, say)

    def run(self, lineage: Lineage, percent: int, rules: CanaryRules) -> None:
        """Send some of the traffic to a version; roll everything to it, or back, by what was seen.

        Raises:
            UserError: says why the version was not taken; the service is then as before.
        """
        try:
            self._start(lineage)
            self._split(percent)
            objection = self._watch(rules)
        except (UserError, KeyboardInterrupt):
            self._end()
            raise
        if objection:
            self._end()
            raise UserError(f"{lineage} was tried and not taken: {objection}")
        self.say(f"{lineage} is as good: all traffic goes to it")
        try:
            self.deployments.roll(STABLE, lineage.labels)
        finally:
            self._end()

    def _start(self, lineage: Lineage) -> None:
        """Make the second Deployment, one pod like those of the first."""
        stable = self.deployments.get(STABLE)
        client = self.server.apps.api_client
        spec = client.sanitize_for_serialization(stable.spec)
        own = {NAME_LABEL: CANARY}
        spec["replicas"] = 1
        spec["selector"] = {"matchLabels": own}
        spec["template"]["metadata"]["labels"] |= own | lineage.labels
        metadata = {"name": CANARY, "labels": {**(stable.metadata.labels or {}), **own}}
        self._delete()
        body = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec}
        create = self.server.apps.create_namespaced_deployment
        self.server.ask(create, self.server.namespace, body, _request_timeout=REQUEST_SECONDS)
        self.say(f"{CANARY} starts with {lineage}")
        self.deployments.wait(CANARY)

    def _split(self, percent: int) -> None:
        """Send a share of all traffic to the canary."""
        front = self.deployments.find(FRONT)
        if front is None:
            pods = self.deployments.get(STABLE).spec.replicas
            self.say(f"without a front (k8s/canary), {CANARY} gets 1 of {pods + 1} requests")
            return
        self._weigh(front, percent)
        self.say(f"{CANARY} gets {percent} of 100 requests")

    def _weigh(self, front: Any, percent: int) -> None:
        weights = {"STABLE_WEIGHT": str(100 - percent), "CANARY_WEIGHT": str(percent)}
        env = [{"name": name, "value": value} for name, value in weights.items()]
        name = front.spec.template.spec.containers[0].name
        body = {"spec": {"template": {"spec": {"containers": [{"name": name, "env": env}]}}}}
        self.deployments.patch(FRONT, body)
        self.deployments.wait(FRONT)

    def _watch(self, rules: CanaryRules) -> str | None:
        """Compare both for some time; why the canary is not as good, or None."""
        before = self._traffic()
        until = time.monotonic() + rules.observe_seconds
        while time.monotonic() < until:
            time.sleep(min(POLL_SECONDS, rules.observe_seconds))
            if died := self._restarts():
                return f"its pod ended {died} times"
        after = self._traffic()
        stable, canary = (now - then for now, then in zip(after, before, strict=True))
        self.say(
            f"requests {stable.requests:.0f} and {canary.requests:.0f}, errors {stable.error_share:.1%} and "
            f"{canary.error_share:.1%}, seconds {stable.latency:.2f} and {canary.latency:.2f}"
        )
        return rules.objection(stable, canary)

    def _traffic(self) -> tuple[Traffic, Traffic]:
        """Of the deployed version and of the canary."""
        stable, canary = (
            traffic_of(self.server, self.deployments.pods(self.deployments.get(name)))
            for name in (STABLE, CANARY)
        )
        return stable, canary

    def _restarts(self) -> int:
        pods = self.deployments.pods(self.deployments.get(CANARY))
        return sum(status.restart_count for pod in pods for status in pod.status.container_statuses or [])

    def _end(self) -> None:
        """No traffic for the canary, then no canary."""
        if (front := self.deployments.find(FRONT)) is not None:
            self._weigh(front, 0)
        self._delete()

    def _delete(self) -> None:
        delete = self.server.apps.delete_namespaced_deployment
        self.server.find(delete, CANARY, self.server.namespace, _request_timeout=REQUEST_SECONDS)
        while self.deployments.find(CANARY):
            time.sleep(1)
