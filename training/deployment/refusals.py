"""Versions that were tried and not taken, written down at the Deployment: no later rollout takes them by
mistake.
"""

import json

from training.deployment.registered_versions import RegisteredVersion
from training.deployment.rollout import Deployments

# Its value is a JSON object: VERSION:WEIGHTS and why.
ANNOTATION = "vargpt.io/refused"


class Refusals:
    """The refused versions of one Deployment."""

    def __init__(self, deployments: Deployments, name: str) -> None:
        self.deployments, self.name = deployments, name

    def reason(self, version: RegisteredVersion) -> str | None:
        """Why a version was not taken; None for one that was not refused."""
        return self._read().get(_key(version))

    def add(self, version: RegisteredVersion, reason: str) -> None:
        """Write down that a version was not taken, and why."""
        self._write(self._read() | {_key(version): reason})

    def drop(self, version: RegisteredVersion) -> None:
        """A version was taken after all."""
        refused = self._read()
        if refused.pop(_key(version), None) is not None:
            self._write(refused)

    def _read(self) -> dict[str, str]:
        annotations = self.deployments.get(self.name).metadata.annotations or {}
        return dict(json.loads(annotations.get(ANNOTATION, "{}")))

    def _write(self, refused: dict[str, str]) -> None:
        body = {"metadata": {"annotations": {ANNOTATION: json.dumps(refused)}}}
        self.deployments.patch(self.name, body)


def _key(version: RegisteredVersion) -> str:
    return f"{version.version}:{version.weights}"
