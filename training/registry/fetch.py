"""A registered model version as a folder, fetched from MLflow."""

import re
from pathlib import Path

from model.errors import UserError, redact
from model.manifest import MANIFEST
from training.tracking.mlflow_run import connect, outage_errors

REGISTERED = "models:/"
_ADDRESS = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))")


def fetch(uri: str, model_uri: str, scratch: Path) -> Path:
    """Download a version below `scratch`; the folder that holds its manifest. ValueError says what failed."""
    match = _ADDRESS.fullmatch(model_uri)
    if match is None:
        raise UserError(f"a model is models:/NAME@ALIAS or models:/NAME/VERSION, got {model_uri!r}")
    try:
        downloaded = _download(uri, match["name"], match["alias"], match["version"], scratch)
    except outage_errors() as error:
        raise UserError(f"{model_uri} cannot be fetched from {redact(uri)}: {redact(error)}") from None
    found = sorted({path.parent for path in downloaded.rglob(MANIFEST)})
    if len(found) != 1:
        raise UserError(f"{model_uri} must hold one folder with {MANIFEST}, found {len(found)}")
    return found[0]


def _download(uri: str, name: str, alias: str | None, version: str | None, scratch: Path) -> Path:
    from mlflow.artifacts import download_artifacts

    client = connect(uri)
    number = version or client.get_model_version_by_alias(name, alias).version
    # Not the models:/ address: MLflow would look that up in its default registry.
    source = client.get_model_version_download_uri(name, number)
    return Path(download_artifacts(artifact_uri=source, dst_path=str(scratch), tracking_uri=uri))
