"""A registered model version as a folder, fetched from MLflow and checked against its registration.

Serving does the same for its bentos (serving/packaging.py): neither may import the other, and `model`, which
both may import, knows no MLflow.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from model.errors import UserError, redact, tracking_failure
from model.manifest import MANIFEST, manifest_sha256
from model.weights_address import missing_weights, with_weights
from training.registry.lineage import WEIGHTS_TAG
from training.registry.versions import local_artifacts
from training.tracking.mlflow_run import connect, outage_errors

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

REGISTERED = "models:/"
_ADDRESS = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))")


@contextmanager
def model_folder(address: str, uri: str, needs_weights: bool = True) -> Iterator[Path]:
    """The folder of a model while the block runs: the folder itself, or a registered version.

    Registered weights are read where they lie, or downloaded for the time of the block from elsewhere.

    Args:
        address: A folder, or models:/NAME@ALIAS or models:/NAME/VERSION.
        uri: Where MLflow is.
        needs_weights: False for small files alone, where weights lie on a volume that is not mounted here.
    """
    if not address.startswith(REGISTERED):
        yield Path(address)
        return
    with TemporaryDirectory() as scratch:
        yield fetch(uri, address, Path(scratch), needs_weights)


def fetch(uri: str, address: str, scratch: Path, needs_weights: bool = True) -> Path:
    """The folder that holds a version's manifest: where it lies on this machine, or downloaded to `scratch`.

    Raises:
        ConnectionError: MLflow, or where it keeps files, cannot be reached.
        UserError: there is no such version, or it is not what was registered.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise UserError(f"a model is models:/NAME@ALIAS or models:/NAME/VERSION, got {address!r}")
    try:
        version, downloaded = _download(uri, match["name"], match["alias"], match["version"], scratch)
    except outage_errors() as error:
        said = f"{address} cannot be fetched from {redact(uri)}: {redact(error)}"
        raise tracking_failure(error, said) from None
    found = sorted({path.parent for path in downloaded.rglob(MANIFEST)})
    if len(found) != 1:
        raise UserError(f"{address} must hold one folder with {MANIFEST}, found {len(found)}")
    registered, weights = version.tags.get(WEIGHTS_TAG), manifest_sha256(found[0])
    if registered != weights:
        raise UserError(f"{address} was registered with weights {registered}, its files are {weights}")
    if not needs_weights and missing_weights(found[0]) is not None:
        return found[0]
    return with_weights(found[0], scratch)


def _download(
    uri: str, name: str, alias: str | None, number: str | None, scratch: Path
) -> "tuple[ModelVersion, Path]":
    from mlflow.artifacts import download_artifacts

    client = connect(uri)
    version = (
        client.get_model_version_by_alias(name, alias) if alias else client.get_model_version(name, number)
    )
    # Not the models:/ address: MLflow would look that up in its default registry.
    source = client.get_model_version_download_uri(name, version.version)
    folder = local_artifacts(source, uri)
    if folder is None:
        folder = Path(download_artifacts(artifact_uri=source, dst_path=str(scratch), tracking_uri=uri))
    return version, folder
