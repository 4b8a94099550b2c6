"""From a registered model version to a bento: fetch, verify, store the weights, build, label with lineage."""

import hashlib
import json
import re
import shutil
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.errors import UserError
from model.manifest import LINEAGE, MANIFEST, manifest_sha256, read_manifest, verify

NAME = "vargpt"
WEIGHTS = "weights"  # folder inside the stored model: the store adds a file of its own beside it
SERVICE = "serving.service:VargptService"
PACKAGES = ("model", "serving")
PACKAGING_ONLY = frozenset(
    {"httpx", "mlflow", "pip", "typer", "uv"}
)  # of the extra `serve`, not needed to answer
ROOT = Path(__file__).resolve().parent.parent
BENTO_TAG = "vargpt.bento_tag"  # of the registered version, beside the rest of its lineage
_MODEL_URI = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))")


@dataclass(frozen=True)
class Fetched:
    """A published model and what is known about its origin."""

    folder: Path
    lineage: dict[str, Any]
    registered_name: str = NAME

    @property
    def version(self) -> str:
        """The registry's version number."""
        return str(self.lineage["model_version"])


def package(tracking_uri: str, model_uri: str = f"models:/{NAME}@champion", *, root: Path = ROOT) -> str:
    """Builds the bento of a model version, unless the very same one is in the store already.

    Args:
        model_uri: models:/NAME@ALIAS or models:/NAME/VERSION.
        root: The folder with pyproject.toml and the packages that answer.

    Returns:
        The bento's tag.
    """
    from mlflow import MlflowClient

    with tempfile.TemporaryDirectory() as scratch:
        fetched = fetch(tracking_uri, model_uri, Path(scratch))
        tag = build(fetched, root)
    client = MlflowClient(tracking_uri=tracking_uri)
    client.set_model_version_tag(fetched.registered_name, fetched.version, BENTO_TAG, tag)
    return tag


def fetch(tracking_uri: str, model_uri: str, scratch: Path) -> Fetched:
    """Downloads a registered version and reads its lineage."""
    from mlflow import MlflowClient
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    match = _MODEL_URI.fullmatch(model_uri)
    if match is None:
        raise UserError(f"model_uri must be models:/NAME@ALIAS or models:/NAME/VERSION, got {model_uri!r}")
    name, number = match["name"], match["version"]
    client = MlflowClient(tracking_uri=tracking_uri)
    try:
        if number is None:
            number = client.get_model_version_by_alias(name, match["alias"]).version
        # Not "models:/...": MLflow would look that up in its default registry, whatever address it is given.
        source = client.get_model_version_download_uri(name, number)
        downloaded = Path(
            download_artifacts(artifact_uri=source, dst_path=str(scratch), tracking_uri=tracking_uri)
        )
    except MlflowException as error:
        raise UserError(f"{model_uri} cannot be fetched from {tracking_uri}: {error.message}") from None
    folder = _published_folder(downloaded, model_uri)
    return Fetched(folder, {**read_lineage(folder), "model_version": str(number)}, name)


def read_lineage(folder: Path) -> dict[str, Any]:
    """The lineage record beside the weights; a ValueError when it tells of other weights."""
    path = folder / LINEAGE
    record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    digest = manifest_sha256(folder)
    if record.get("weights_sha256") not in (None, digest):
        raise UserError(f"{path} says weights_sha256 {record['weights_sha256']}, the manifest's is {digest}")
    return {**record, "weights_sha256": digest}


def build(fetched: Fetched, root: Path = ROOT) -> str:
    """Stores the weights, verified file by file, and builds the bento; returns its tag."""
    import bentoml
    from bentoml.exceptions import NotFound

    requirements = runtime_requirements(root / "pyproject.toml")
    tag = f"{NAME}:v{fetched.version}-{_content_digest(fetched, root, requirements)[:12]}"
    try:
        bento = bentoml.bentos.get(tag)
        # The store takes the youngest for the latest; for us it is the one that was asked for last.
        Path(bento.path).with_name("latest").write_text(str(bento.tag.version), encoding="ascii")
    except NotFound:
        labels = {key: str(value) for key, value in fetched.lineage.items() if value is not None}
        with tempfile.TemporaryDirectory() as context:
            for file in _source_files(root):
                target = Path(context) / file.relative_to(root)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)
            bento = bentoml.build(
                SERVICE,
                name=NAME,
                version=tag.partition(":")[2],
                labels={**labels, "bento_tag": tag},
                include=[f"{package}/" for package in PACKAGES],
                models=[_store_weights(fetched, labels)],
                python={"packages": requirements, "lock_packages": False},
                build_ctx=context,
            )
    return str(bento.tag)


def runtime_requirements(pyproject: Path) -> list[str]:
    """What the service needs installed: the dependencies and the extra `serve`, less the packaging tools."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["serve"]]
    return [line for line in wanted if re.match(r"[\w.-]+", line)[0].lower() not in PACKAGING_ONLY]


def _published_folder(downloaded: Path, model_uri: str) -> Path:
    """The folder that holds the manifest; the registry may have wrapped it or put files beside it."""
    found = sorted({path.parent for path in downloaded.rglob(MANIFEST)})
    if len(found) != 1:
        raise UserError(f"{model_uri} must hold one folder with {MANIFEST}, found {len(found)}")
    return found[0]


def _store_weights(fetched: Fetched, labels: dict[str, str]) -> str:
    import bentoml
    from bentoml.exceptions import NotFound

    tag = f"{NAME}:v{fetched.version}-{fetched.lineage['weights_sha256'][:12]}"
    try:
        return str(bentoml.models.get(tag).tag)
    except NotFound:
        with bentoml.models.create(tag, labels=labels) as stored:
            folder = Path(stored.path) / WEIGHTS
            copy_published(fetched.folder, folder)
            (folder / LINEAGE).write_text(json.dumps(fetched.lineage, indent=1) + "\n", encoding="utf-8")
        return str(stored.tag)


def copy_published(source: Path, target: Path) -> None:
    """Copies what the manifest names, and nothing else, and verifies the copy."""
    for name in (*read_manifest(source), MANIFEST):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name)
    verify(target)


def _source_files(root: Path) -> Iterator[Path]:
    for package_name in PACKAGES:
        for path in sorted((root / package_name).rglob("*")):
            inside = path.relative_to(root).parts
            if path.is_file() and not any(part.startswith((".", "__pycache__")) for part in inside):
                yield path


def _content_digest(fetched: Fetched, root: Path, requirements: list[str]) -> str:
    """Names code, requirements and weights together, so that the same content has the same tag."""
    digest = hashlib.sha256(json.dumps([fetched.lineage, requirements], sort_keys=True).encode())
    for path in _source_files(root):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
