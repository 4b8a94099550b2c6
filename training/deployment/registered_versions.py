"""Versions of a registered model as a cluster knows them: labels of pods, and a list of what is admitted."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from model.errors import UserError
from training.registry.lineage import WEIGHTS_TAG
from training.registry.promotion import PAST_TAGS
from training.registry.versions import CHAMPION, figures_of, open_registry
from training.submission.api import REQUEST_SECONDS, ApiServer

VERSION_LABEL, WEIGHTS_LABEL = "vargpt.io/version", "vargpt.io/weights"
# Digits of the weights' hash in a label, whose length is limited.
WEIGHTS_DIGITS = 12
# The ConfigMap that the admission policy looks into.
REGISTERED = "registered-versions"


@dataclass(frozen=True)
class RegisteredVersion:
    """A version as its pods carry it, and what a canary of it is compared by.

    Args:
        weights: The first digits of its weights' hash.
        figures: Those that it was registered with, as in metrics/evaluate.json; None for none.
        is_withdrawn: Whether a rollback took it back; it then sets no bar.
    """

    version: str
    weights: str
    figures: Mapping[str, Any] | None = field(default=None, compare=False, repr=False)
    is_withdrawn: bool = field(default=False, compare=False)

    @property
    def labels(self) -> dict[str, str]:
        """Of pods."""
        return {VERSION_LABEL: self.version, WEIGHTS_LABEL: self.weights}

    def __str__(self) -> str:
        return f"version {self.version} ({self.weights})"


@dataclass(frozen=True)
class RegisteredVersions:
    """All versions of a model that have weights, in their order, and its aliases."""

    model_name: str
    versions: tuple[RegisteredVersion, ...]
    aliases: Mapping[str, str]

    def numbered(self, number: str) -> RegisteredVersion:
        """A version by its number. UserError where there is none."""
        for version in self.versions:
            if version.version == number:
                return version
        known = ", ".join(version.version for version in self.versions) or "none"
        raise UserError(f"{self.model_name} has no version {number} with weights; it has {known}")

    def named(self, alias: str) -> RegisteredVersion:
        """The version that has an alias. UserError where there is none."""
        if alias not in self.aliases:
            hint = ": vargpt promote" if alias == CHAMPION else ""
            raise UserError(f"{self.model_name} has no {alias}{hint}")
        return self.numbered(self.aliases[alias])

    def of_pods(self, labels: Mapping[str, str]) -> RegisteredVersion | None:
        """The version that pods with these labels serve; None for one that is not registered."""
        found = [version for version in self.versions if version.labels.items() <= labels.items()]
        return found[0] if found else None


def registered_versions(uri: str, model_name: str) -> RegisteredVersions:
    """What the registry knows of a model. UserError where there is no such model."""
    client = open_registry(uri)
    if not client.search_registered_models(f"name = '{model_name}'"):
        raise UserError(f"there is no registered model {model_name}")
    aliases = client.get_registered_model(model_name).aliases
    known = [
        RegisteredVersion(
            str(version.version),
            version.tags[WEIGHTS_TAG][:WEIGHTS_DIGITS],
            figures_of(version),
            bool(version.tags.keys() & set(PAST_TAGS)),
        )
        for version in client.search_model_versions(f"name = '{model_name}'")
        if WEIGHTS_TAG in version.tags
    ]
    known.sort(key=lambda version: int(version.version))
    return RegisteredVersions(
        model_name, tuple(known), {alias: str(number) for alias, number in aliases.items()}
    )


def write_registered(server: ApiServer, known: Iterable[RegisteredVersion]) -> None:
    """Write the list that admission looks into, where the platform has one."""
    listed = ",".join(f"{version.version}:{version.weights}" for version in known)
    patch = server.core.patch_namespaced_config_map
    body = {"data": {"versions": listed}}
    server.find(patch, REGISTERED, server.namespace, body, _request_timeout=REQUEST_SECONDS)
