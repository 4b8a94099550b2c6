"""Replaces the pods of a Deployment, waits until the new ones answer, and says why where they do not."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from model.errors import UserError
from training.submission.api import NOT_FOUND, REQUEST_SECONDS, ApiServer
from training.submission.pod_reasons import exit_codes, waiting_reason

POLL_SECONDS = 2.0
# How long pods may be in trouble before a rollout is given up: restarts and pulls get a second chance.
TROUBLE_SECONDS = 60.0
# Of a log's end, what is told of a container that ends again and again.
LOG_LINES = 5


class Deployments:
    """The Deployments of one namespace.

    Args:
        say: Takes a line for the user.
    """

    def __init__(self, server: ApiServer, say: Callable[[str], None]) -> None:
        self.server, self.say = server, say

    def get(self, name: str) -> Any:
        """A Deployment. UserError where there is none."""
        found = self.find(name)
        if found is None:
            raise UserError(
                f"there is no deployment {name} in {self.server.namespace}: kubectl apply -k k8s/serving"
            )
        return found

    def find(self, name: str) -> Any | None:
        """A Deployment, or None."""
        read = self.server.apps.read_namespaced_deployment
        return self.server.find(read, name, self.server.namespace, _request_timeout=REQUEST_SECONDS)

    def labels(self, name: str) -> dict[str, str]:
        """The labels of a Deployment's pods."""
        return dict(self.get(name).spec.template.metadata.labels)

    def patch(self, name: str, body: Mapping[str, Any]) -> None:
        """Change a Deployment."""
        patch = self.server.apps.patch_namespaced_deployment
        self.server.ask(patch, name, self.server.namespace, body, _request_timeout=REQUEST_SECONDS)

    def roll(self, name: str, labels: Mapping[str, str], trouble_seconds: float = TROUBLE_SECONDS) -> None:
        """Give a Deployment's pods other labels and wait until all of them answer.

        Raises:
            UserError: says why they do not; the labels, and with them the pods, are then as before.
        """
        before = self.labels(name)
        self.patch(name, {"spec": {"template": {"metadata": {"labels": dict(labels)}}}})
        try:
            self.wait(name, trouble_seconds)
        except UserError as error:
            former = {key: before.get(key) for key in labels}
            self.patch(name, {"spec": {"template": {"metadata": {"labels": former}}}})
            raise UserError(f"{error}; {name} stays as it was") from None

    def wait(self, name: str, trouble_seconds: float = TROUBLE_SECONDS) -> None:
        """Wait until all pods of a Deployment are of its present template and answer."""
        trouble_since, told = None, ""
        while True:
            deployment = self.get(name)
            if is_rolled_out(deployment):
                return
            reason = self._trouble(deployment)
            if reason and reason != told:
                self.say(f"{name} waits: {reason}")
                told = reason
            trouble_since = (trouble_since or time.monotonic()) if reason else None
            if trouble_since and time.monotonic() - trouble_since > trouble_seconds:
                raise UserError(f"{name} does not come up: {reason}{self._last_words(deployment)}")
            time.sleep(POLL_SECONDS)

    def pods(self, deployment: Any) -> list[Any]:
        """The pods of a Deployment, those of its present template alone."""
        template = deployment.spec.template.metadata.labels
        selector = ",".join(f"{key}={value}" for key, value in sorted(template.items()))
        list_pods = self.server.core.list_namespaced_pod
        found = self.server.ask(
            list_pods, self.server.namespace, label_selector=selector, _request_timeout=REQUEST_SECONDS
        )
        return [pod for pod in found.items if pod.metadata.deletion_timestamp is None]

    def _trouble(self, deployment: Any) -> str:
        """What keeps new pods from answering; empty while they merely start."""
        for condition in deployment.status.conditions or []:
            # Refused by a quota or a policy, or past progressDeadlineSeconds.
            is_stuck = condition.type == "Progressing" and condition.status == "False"
            if is_stuck or (condition.type == "ReplicaFailure" and condition.status == "True"):
                return str(condition.message)
        for pod in self.pods(deployment):
            if reason := waiting_reason(pod):
                return reason
            for container, code, word in exit_codes(pod):
                return f"{container} ended with exit code {code} {word}".rstrip()
        return ""

    def _last_words(self, deployment: Any) -> str:
        """The end of the log of a container that has ended."""
        from kubernetes.client import ApiException

        for pod in self.pods(deployment):
            for container, _, _ in exit_codes(pod):
                try:
                    text = self.server.ask(
                        self.server.core.read_namespaced_pod_log,
                        pod.metadata.name,
                        self.server.namespace,
                        container=container,
                        previous=bool(pod.status.container_statuses[0].restart_count),
                        tail_lines=LOG_LINES,
                        _request_timeout=REQUEST_SECONDS,
                    )
                except ApiException as error:
                    if error.status in (400, NOT_FOUND):
                        continue
                    raise
                return f"; it said: {' / '.join(text.strip().splitlines())}"
        return ""


def is_rolled_out(deployment: Any) -> bool:
    """Whether all pods are of the present template and answer, and those before them are gone."""
    status, wanted = deployment.status, deployment.spec.replicas
    if (status.observed_generation or 0) < deployment.metadata.generation:
        return False
    counts = (status.updated_replicas or 0, status.available_replicas or 0, status.replicas or 0)
    return counts == (wanted, wanted, wanted)
