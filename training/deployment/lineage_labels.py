"""A registered version as two labels of the pods that serve it, and the list of admitted versions."""

from collections.abc import Iterable
from dataclasses import dataclass

from model.errors import UserError
from training.registry.lineage import WEIGHTS_TAG
from training.registry.versions import CHAMPION, open_registry
from training.submission.api import REQUEST_SECONDS, ApiServer

VERSION_LABEL, WEIGHTS_LABEL = "vargpt.io/version", "vargpt.io/weights"
# Digits of the weights' hash in a label, whose length is limited.
WEIGHTS_DIGITS = 12
# The ConfigMap that the admission policy looks into.
REGISTERED = "registered-versions"


@dataclass(frozen=True)
class Lineage:
    """A registered version, as its pods carry it."""

    version: str
    weights: str

    @property
    def labels(self) -> dict[str, str]:
        """Of pods."""
        return {VERSION_LABEL: self.version, WEIGHTS_LABEL: self.weights}

    def __str__(self) -> str:
        return f"version {self.version} ({self.weights})"


def registered_versions(uri: str, model_name: str) -> tuple[list[Lineage], Lineage]:
    """All versions that have weights, and the champion. UserError where there is none."""
    client = open_registry(uri)
    if not client.search_registered_models(f"name = '{model_name}'"):
        raise UserError(f"there is no registered model {model_name}")
    champion = client.get_registered_model(model_name).aliases.get(CHAMPION)
    known = [
        Lineage(str(version.version), version.tags[WEIGHTS_TAG][:WEIGHTS_DIGITS])
        for version in client.search_model_versions(f"name = '{model_name}'")
        if WEIGHTS_TAG in version.tags
    ]
    best = [lineage for lineage in known if lineage.version == str(champion)]
    if not best:
        raise UserError(f"{model_name} has no champion: vargpt promote")
    return sorted(known, key=lambda lineage: int(lineage.version)), best[0]


def write_registered(server: ApiServer, known: Iterable[Lineage]) -> None:
    """Write the list that admission looks into, where the platform has one."""
    listed = ",".join(f"{lineage.version}:{lineage.weights}" for lineage in known)
    patch = server.core.patch_namespaced_config_map
    body = {"data": {"versions": listed}}
    server.find(patch, REGISTERED, server.namespace, body, _request_timeout=REQUEST_SECONDS)
