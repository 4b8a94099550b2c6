"""Model versions in MLflow's registry: put one in with its figures and lineage, and read them back."""

import dataclasses
import json
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.errors import UserError, redact, tracking_failure
from model.manifest import LINEAGE, link_published, manifest_sha256, verify
from model.weights_address import put_on_volume
from training.registry.evaluation_subject import check_subject, subject_of
from training.registry.lineage import TAG_PREFIX, WEIGHTS_TAG, Lineage, write_lineage
from training.registry.trained_versions import TRAINED_TAG, trained_version
from training.tracking.mlflow_run import connect, create_registered_model, find_run, outage_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

logger = logging.getLogger(__name__)

CHAMPION, CHALLENGER = "champion", "challenger"
METRICS_TAG = f"{TAG_PREFIX}metrics"
# Weights are large and nobody's training waits for them.
UPLOAD_SECONDS, UPLOAD_RETRIES = 120, 2


def open_registry(uri: str) -> "MlflowClient":
    """A client of a registry that answers.

    Raises:
        ConnectionError: it does not.
        UserError: it does not let us.
    """
    try:
        client = connect(uri, UPLOAD_SECONDS, UPLOAD_RETRIES)
        client.search_experiments(max_results=1)
    except outage_errors() as error:
        raise tracking_failure(error, f"MLflow at {redact(uri)} cannot be reached: {redact(error)}") from None
    return client


def register(
    uri: str,
    model_name: str,
    run_id: str,
    model_dir: Path,
    metrics: Mapping[str, Any],
    lineage: Lineage,
    weights_volume: Path | None = None,
) -> str:
    """Put a model folder into its run and register it; returns the version, the same for the same weights.

    Where artifacts lie on this file system, they are hard links to the folder: weights are not copied. The
    folder stays as it is. The record in the registered copy also names run and version.

    Args:
        run_id: MLflow's id of the run, or our own name for it.
        metrics: The content of metrics/evaluate.json, which later candidates are held against. UserError when
            they are of other weights, of other data than the model learned from, or of the tuning split.
        weights_volume: A folder that all readers mount: weights lie there, the registry knows the address.
    """
    model_dir = Path(model_dir)
    verify(model_dir)
    weights = manifest_sha256(model_dir)
    if lineage.weights_sha256 not in (None, weights):
        raise UserError(
            f"{model_dir} has weights {weights}, the lineage record says {lineage.weights_sha256}"
        )
    check_subject(metrics, weights, lineage.data_md5)
    client = open_registry(uri)
    run = find_run(client, run_id)
    if run is None:
        raise UserError(f"MLflow knows no run {run_id!r}: if it is still in a spool, `vargpt sync` sends it")
    record = dataclasses.replace(lineage, run_id=run.info.run_id, weights_sha256=weights)
    version = _version_of(client, model_name, run.info.run_id, weights)
    if version is None:
        version = _upload(client, model_name, model_dir, record, weights_volume)
    client.set_model_version_tag(model_name, version, METRICS_TAG, _as_text(metrics))
    with tempfile.TemporaryDirectory() as scratch:
        write_lineage(dataclasses.replace(record, model_version=version), Path(scratch))
        client.log_artifact(run.info.run_id, f"{scratch}/{LINEAGE}", _artifact_folder(weights))
    return version


def replace_figures(uri: str, model_name: str, alias: str, metrics: Mapping[str, Any]) -> None:
    """Keep a newer evaluation of a registered version. UserError when it is of other weights."""
    client = open_registry(uri)
    version = _version_with(client, model_name, alias)
    if version is None:
        raise UserError(f"{model_name} has no {alias}")
    measured = subject_of(metrics).weights_sha256
    if (weights := version.tags.get(WEIGHTS_TAG)) != measured:
        raise UserError(f"the figures are of weights {measured}, the {alias} has {weights}")
    client.set_model_version_tag(model_name, version.version, METRICS_TAG, _as_text(metrics))


def existing_version(client: "MlflowClient", model_name: str, version: str) -> "ModelVersion | None":
    """A version, or None where it was deleted or never was."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version(model_name, version)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def figures_of(version: "ModelVersion") -> dict[str, Any] | None:
    """The figures that were registered with a version, as in metrics/evaluate.json; None for none."""
    text = version.tags.get(METRICS_TAG)
    return None if text is None else json.loads(text)


def _as_text(metrics: Mapping[str, Any]) -> str:
    return json.dumps(metrics, sort_keys=True, allow_nan=False)


def _artifact_folder(weights: str) -> str:
    """Named after the weights, so that a later upload to the same run cannot change a registered version."""
    return f"model-{weights[:12]}"


def _version_of(client: "MlflowClient", model_name: str, run_id: str, weights: str) -> str | None:
    found = client.search_model_versions(f"name = '{model_name}'")
    same = [v for v in found if v.run_id == run_id and v.tags.get(WEIGHTS_TAG) == weights]
    return str(max(int(v.version) for v in same)) if same else None


def _version_with(client: "MlflowClient", model_name: str, alias: str) -> "ModelVersion | None":
    found = client.search_registered_models(f"name = '{model_name}'")
    aliases = found[0].aliases if found else {}
    return client.get_model_version(model_name, aliases[alias]) if alias in aliases else None


def local_artifacts(source: str, uri: str) -> Path | None:
    """The folder that an artifact address of MLflow names; None where it is not on this machine's disks."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    repository = get_artifact_repository(source, tracking_uri=uri, registry_uri=uri)
    # Addresses of runs and of models are resolved by a repository around the one that holds the files.
    repository = getattr(repository, "repo", repository)
    return Path(repository.artifact_dir) if isinstance(repository, LocalArtifactRepository) else None


def _put_artifacts(
    client: "MlflowClient", run_id: str, model_dir: Path, folder: str, weights_volume: Path | None
) -> None:
    if weights_volume is not None:
        with tempfile.TemporaryDirectory() as scratch:
            put_on_volume(model_dir, weights_volume, Path(scratch, folder))
            client.log_artifacts(run_id, f"{scratch}/{folder}", folder)
        return
    artifacts = local_artifacts(client.get_run(run_id).info.artifact_uri, client.tracking_uri)
    if artifacts is None:
        client.log_artifacts(run_id, str(model_dir), folder)
    else:
        link_published(model_dir, artifacts / folder)


def _upload(
    client: "MlflowClient", model_name: str, model_dir: Path, record: Lineage, weights_volume: Path | None
) -> str:
    assert record.run_id and record.weights_sha256
    folder = _artifact_folder(record.weights_sha256)
    _put_artifacts(client, record.run_id, model_dir, folder, weights_volume)
    create_registered_model(client, model_name)
    source = f"runs:/{record.run_id}/{folder}"
    tags = record.tags()
    if trained := trained_version(client, record.run_id, record.weights_sha256):
        tags |= {TRAINED_TAG: trained}
    created = client.create_model_version(model_name, source, record.run_id, tags, await_creation_for=0)
    logger.info("registered %s version %s from run %s", model_name, created.version, record.run_id)
    return str(created.version)
