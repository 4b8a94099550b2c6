"""The registry of model versions in MLflow: put one in, and let it become champion if the gates say so."""

import dataclasses
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.errors import UserError, redact
from model.manifest import LINEAGE, manifest_sha256, verify
from training.registry.gates import Decision, decide
from training.registry.lineage import TAG_PREFIX, Lineage, write_lineage
from training.tracking.mlflow_run import connect, find_run, outage_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

logger = logging.getLogger(__name__)

CHAMPION, CHALLENGER = "champion", "challenger"
METRICS_TAG = f"{TAG_PREFIX}metrics"
WEIGHTS_TAG = f"{TAG_PREFIX}weights_sha256"
DATA_TAG = f"{TAG_PREFIX}data_md5"
# Weights are large and nobody's training waits for them.
UPLOAD_SECONDS, UPLOAD_RETRIES = 120, 2


@dataclass(frozen=True)
class Promotion:
    """What became of a candidate, and why."""

    version: str
    champion_before: str | None
    is_champion: bool
    has_changed: bool
    decision: Decision | None
    obstacle: str | None = None

    @property
    def report(self) -> str:
        """A line for the outcome, then one for every gate that failed (or, promoted, for every gate)."""
        before = f"version {self.champion_before}" if self.champion_before else "nothing"
        if self.is_champion and not self.has_changed:
            return f"version {self.version} is the champion already"
        if self.is_champion:
            lines = [f"version {self.version} is the champion now, after {before}"]
        else:
            lines = [f"version {self.version} is the challenger; the champion stays {before}"]
        gates = () if self.decision is None else self.decision.gates
        lines += [f"  {gate}" for gate in gates if self.is_champion or not gate.is_open]
        return "\n".join(lines + ([f"  {self.obstacle}"] if self.obstacle else []))


def register(
    uri: str, model_name: str, run_id: str, model_dir: Path, metrics: Mapping[str, Any], lineage: Lineage
) -> str:
    """Upload a model folder to its run and register it; returns the version, the same for the same weights.

    The lineage record beside the weights, and its copy in the registry, then also name run and version.

    Args:
        run_id: MLflow's id of the run, or our own name for it.
        metrics: The content of metrics/evaluate.json, which later candidates are held against.
    """
    model_dir = Path(model_dir)
    verify(model_dir)
    weights = manifest_sha256(model_dir)
    if lineage.weights_sha256 not in (None, weights):
        raise UserError(
            f"{model_dir} has weights {weights}, the lineage record says {lineage.weights_sha256}"
        )
    client = _client(uri)
    run = find_run(client, run_id)
    if run is None:
        raise UserError(f"MLflow knows no run {run_id!r}: if it is still in a spool, `vargpt sync` sends it")
    record = dataclasses.replace(lineage, run_id=run.info.run_id, weights_sha256=weights)
    version = _version_of(client, model_name, run.info.run_id, weights)
    if version is None:
        version = _upload(client, model_name, model_dir, record)
    client.set_model_version_tag(model_name, version, METRICS_TAG, json.dumps(metrics, sort_keys=True))
    write_lineage(dataclasses.replace(record, model_version=version), model_dir)
    client.log_artifact(run.info.run_id, str(model_dir / LINEAGE), _artifact_folder(weights))
    return version


def promote(
    uri: str,
    model_name: str,
    version: str,
    margins: Mapping[str, Any],
    floors: Mapping[str, Any] | None = None,
    by: str = "",
    record: Path | None = None,
    champion_metrics: Mapping[str, Any] | None = None,
) -> Promotion:
    """Make a version the champion if every gate is open, else the challenger; write down who, when and why.

    Args:
        margins: How much worse than the champion each gated metric may be, nested like the metrics.
        record: A file of JSON lines to which the decision is appended; the run keeps a copy.
        champion_metrics: A fresh evaluation of the champion, needed when the data has changed since its own.
    """
    client = _client(uri)
    candidate, champion = _get(client, model_name, version), _champion(client, model_name)
    if champion and champion.version == candidate.version:
        return Promotion(version, version, True, False, None)
    before = champion and champion.version
    held_against = champion and (champion_metrics or _metrics(champion))
    decision = decide(_metrics(candidate), held_against, margins, floors)
    obstacle = None if champion is None or champion_metrics else _data_obstacle(candidate, champion)
    is_yes = decision.is_yes and obstacle is None
    promotion = Promotion(version, before, is_yes, is_yes, decision, obstacle)
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    if is_yes:
        # The alias last: it is the one change that others act upon.
        for key, value in (("promoted_at", now), ("promoted_by", by), ("promoted_from", before or "")):
            client.set_model_version_tag(model_name, version, key, value)
        client.set_registered_model_alias(model_name, CHAMPION, version)
        _drop_challenger(client, model_name, version)
    else:
        client.set_registered_model_alias(model_name, CHALLENGER, version)
    _write_record(client, candidate, promotion, {"time": now, "by": by, "model": model_name}, record)
    return promotion


def _client(uri: str) -> "MlflowClient":
    try:
        client = connect(uri, UPLOAD_SECONDS, UPLOAD_RETRIES)
        client.search_experiments(max_results=1)
    except outage_errors() as error:
        raise UserError(f"MLflow at {redact(uri)} cannot be reached: {redact(error)}") from None
    return client


def _artifact_folder(weights: str) -> str:
    """Named after the weights, so that a later upload to the same run cannot change a registered version."""
    return f"model-{weights[:12]}"


def _version_of(client: "MlflowClient", model_name: str, run_id: str, weights: str) -> str | None:
    found = client.search_model_versions(f"name = '{model_name}'")
    same = [v for v in found if v.run_id == run_id and v.tags.get(WEIGHTS_TAG) == weights]
    return str(max(int(v.version) for v in same)) if same else None


def _upload(client: "MlflowClient", model_name: str, model_dir: Path, record: Lineage) -> str:
    from mlflow.exceptions import MlflowException

    assert record.run_id and record.weights_sha256
    folder = _artifact_folder(record.weights_sha256)
    client.log_artifacts(record.run_id, str(model_dir), folder)
    try:
        client.create_registered_model(model_name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source = f"runs:/{record.run_id}/{folder}"
    created = client.create_model_version(
        model_name, source, record.run_id, tags=record.tags(), await_creation_for=0
    )
    logger.info("registered %s version %s from run %s", model_name, created.version, record.run_id)
    return str(created.version)


def _get(client: "MlflowClient", model_name: str, version: str) -> "ModelVersion":
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version(model_name, version)
    except MlflowException as error:
        raise UserError(f"there is no version {version} of {model_name}: {error}") from error


def _champion(client: "MlflowClient", model_name: str) -> "ModelVersion | None":
    aliases = client.get_registered_model(model_name).aliases
    return client.get_model_version(model_name, aliases[CHAMPION]) if CHAMPION in aliases else None


def _metrics(version: "ModelVersion") -> dict[str, Any]:
    try:
        return json.loads(version.tags[METRICS_TAG])
    except KeyError:
        raise UserError(
            f"version {version.version} of {version.name} has no metrics: evaluate it first"
        ) from None


def _data_obstacle(candidate: "ModelVersion", champion: "ModelVersion") -> str | None:
    """Scores on different data say nothing about which model is better."""
    ours, theirs = candidate.tags.get(DATA_TAG), champion.tags.get(DATA_TAG)
    if ours == theirs:
        return None
    return (
        f"data: {ours} is not the champion's {theirs}: evaluate the champion on the new data to compare them"
    )


def _drop_challenger(client: "MlflowClient", model_name: str, version: str) -> None:
    if str(client.get_registered_model(model_name).aliases.get(CHALLENGER)) == version:
        client.delete_registered_model_alias(model_name, CHALLENGER)


def _write_record(
    client: "MlflowClient",
    candidate: "ModelVersion",
    promotion: Promotion,
    facts: dict[str, str],
    path: Path | None,
) -> None:
    """Append the decision to the record, here and in the candidate's run: aliases have no history."""
    gates = promotion.decision.gates if promotion.decision else ()
    entry = facts | {
        "version": promotion.version,
        "from": promotion.champion_before,
        "promoted": promotion.is_champion,
        "obstacle": promotion.obstacle,
        "gates": [dataclasses.asdict(gate) | {"short_by": gate.short_by} for gate in gates],
    }
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())
    client.log_dict(candidate.run_id, entry, f"promotions/{facts['time'].replace(':', '')}.json")
