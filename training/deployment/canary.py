"""Canary: a second Deployment of another version gets a share of the traffic and is compared with the first.

The figures that both were registered with are compared before, by the gates of promotion; a version that is
not taken is written down, so that no later rollout takes it.

Traffic is split by weights of the front (k8s/canary) or of the route (k8s/overlays/gateway) where one is
there; without them, the service sends requests to all pods alike, so that the share follows from how many
there are.
"""

import time
from collections.abc import Callable

from training.deployment.canary_rules import CanaryRules, bar_of
from training.deployment.refusals import Refusals
from training.deployment.registered_versions import RegisteredVersion
from training.deployment.rollout import Deployments
from training.deployment.service_metrics import Traffic, traffic_of
from training.deployment.traffic_split import TrafficSplit
from training.submission.api import REQUEST_SECONDS, ApiServer

STABLE, CANARY = "vargpt", "vargpt-canary"
NAME_LABEL = "app.kubernetes.io/name"
POLL_SECONDS = 5.0


class Canary:
    """One trial of a version beside the one that is deployed.

    Args:
        say: Takes a line for the user.
    """

    def __init__(self, server: ApiServer, say: Callable[[str], None]) -> None:
        self.server, self.say = server, say
        self.deployments = Deployments(server, say)
        self.refusals = Refusals(self.deployments, STABLE)
        self.traffic_split = TrafficSplit(self.deployments)

    def run(
        self,
        canary: RegisteredVersion,
        stable: RegisteredVersion | None,
        percent: int,
        rules: CanaryRules,
        promote: Callable[[], str | None],
    ) -> str | None:
        """Send some of the traffic to a version; roll everything to it, or back, by what was seen.

        Args:
            stable: The version that is deployed; None where it is not registered.
            promote: Called after a good trial, before everything goes to the version: makes it the champion,
                or returns why not.

        Returns:
            Why the version was not taken, in which case the service is as before; None if it was.

        Raises:
            UserError: the version does not come up, or cannot be compared; the service is then as before.
        """
        bar = bar_of(stable, canary)
        against = f"those of {bar}" if bar else "floors alone: what is deployed sets no bar"
        self.say(f"the figures of {canary} are held against {against}")
        objection = rules.objection_to_figures(bar, canary) or self._try(canary, percent, rules, promote)
        if objection is None:
            self.refusals.drop(canary)
        else:
            self.refusals.add(canary, objection)
        return objection

    def _try(
        self,
        version: RegisteredVersion,
        percent: int,
        rules: CanaryRules,
        promote: Callable[[], str | None],
    ) -> str | None:
        """Try a version and roll everything to it; why it was not taken, or None."""
        try:
            self._start(version)
            self._split(percent)
            objection = self._watch(rules) or promote()
            if objection is None:
                self.say(f"{version} is as good: all traffic goes to it")
                self.deployments.roll(STABLE, version.labels)
            return objection
        finally:
            self._end()

    def _start(self, version: RegisteredVersion) -> None:
        """Make the second Deployment, one pod like those of the first."""
        stable = self.deployments.get(STABLE)
        client = self.server.apps.api_client
        spec = client.sanitize_for_serialization(stable.spec)
        own = {NAME_LABEL: CANARY}
        spec["replicas"] = 1
        spec["selector"] = {"matchLabels": own}
        spec["template"]["metadata"]["labels"] |= own | version.labels
        metadata = {"name": CANARY, "labels": {**(stable.metadata.labels or {}), **own}}
        self._delete()
        body = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec}
        create = self.server.apps.create_namespaced_deployment
        self.server.ask(create, self.server.namespace, body, _request_timeout=REQUEST_SECONDS)
        self.say(f"{CANARY} starts with {version}")
        self.deployments.wait(CANARY)

    def _split(self, percent: int) -> None:
        """Send a share of all traffic to the canary."""
        if self.traffic_split.set(percent):
            self.say(f"{CANARY} gets {percent} of 100 requests")
            return
        pods = self.deployments.get(STABLE).spec.replicas
        self.say(f"without a front (k8s/canary) or a route, {CANARY} gets 1 of {pods + 1} requests")

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
        return rules.objection_to_traffic(stable, canary)

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
        self.traffic_split.set(0)
        self._delete()

    def _delete(self) -> None:
        delete = self.server.apps.delete_namespaced_deployment
        self.server.find(delete, CANARY, self.server.namespace, _request_timeout=REQUEST_SECONDS)
        while self.deployments.find(CANARY):
            time.sleep(1)
