"""Makes a bento of a registered model version: fetch, verify, store the weights, build, label with lineage.

Training fetches versions, too (training/registry/fetch.py): neither may import the other, and `model`, which
both may import, knows no MLflow.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.errors import UserError, redact, tracking_failure
from model.manifest import LINEAGE, MANIFEST, link_published, manifest_sha256, verify
from model.weights_address import with_weights

NAME = "vargpt"
WEIGHTS = "weights"  # folder inside the stored model: the store adds a file of its own beside it
SERVICE = "serving.service:VargptService"
PACKAGES = ("model", "serving")
ROOT = Path(__file__).resolve().parent.parent
# What the bento installs, pinned with hashes, for each build of torch; below ROOT.
LOCKS = {torch: Path(f"requirements/serving-{torch}.txt") for torch in ("cpu", "cuda")}
# Tags of the registered version.
BENTO_TAG, WEIGHTS_TAG = "vargpt.bento_tag", "vargpt.weights_sha256"
UNKNOWN = "unknown"
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


def package(
    tracking_uri: str,
    model_uri: str = f"models:/{NAME}@champion",
    *,
    root: Path = ROOT,
    lock: Path = LOCKS["cuda"],
) -> str:
    """Builds the bento of a model version, unless the very same one is in the store already.

    Args:
        model_uri: models:/NAME@ALIAS or models:/NAME/VERSION.
        root: The repository, with the packages that answer.
        lock: The requirements that the bento installs, relative to `root`; hashes in it are kept.

    Returns:
        The bento's tag.
    """
    from mlflow import MlflowClient

    with tempfile.TemporaryDirectory() as scratch:
        fetched = fetch(tracking_uri, model_uri, Path(scratch))
        tag = build(fetched, root, lock)
    client = MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)
    client.set_model_version_tag(fetched.registered_name, fetched.version, BENTO_TAG, tag)
    return tag


def fetch(tracking_uri: str, model_uri: str, scratch: Path) -> Fetched:
    """A registered version, where it lies on this machine or downloaded to `scratch`, and its lineage.

    Raises:
        ConnectionError: MLflow, or where it keeps files, cannot be reached.
        UserError: there is no such version, or its files are not those that were registered.
    """
    _set_mlflow_defaults()
    from mlflow import MlflowClient
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    match = _MODEL_URI.fullmatch(model_uri)
    if match is None:
        raise UserError(f"model_uri must be models:/NAME@ALIAS or models:/NAME/VERSION, got {model_uri!r}")
    name, number = match["name"], match["version"]
    client = MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)
    try:
        if number is None:
            number = client.get_model_version_by_alias(name, match["alias"]).version
        registered = client.get_model_version(name, number).tags.get(WEIGHTS_TAG)
        # Not "models:/...": MLflow would look that up in its default registry, whatever address it is given.
        source = client.get_model_version_download_uri(name, number)
        downloaded = _local_artifacts(source, tracking_uri) or Path(
            download_artifacts(artifact_uri=source, dst_path=str(scratch), tracking_uri=tracking_uri)
        )
    except (MlflowException, SQLAlchemyError, OSError) as error:
        said = f"{model_uri} cannot be fetched from {redact(tracking_uri)}: {redact(error)}"
        raise tracking_failure(error, said) from None
    folder = _published_folder(downloaded, model_uri)
    # The record beside the weights could have been changed together with them.
    if (weights := manifest_sha256(folder)) != registered:
        raise UserError(f"{model_uri} was registered with weights {registered}, its files are {weights}")
    folder = with_weights(folder, scratch)
    return Fetched(folder, {**read_lineage(folder), "model_version": str(number)}, name)


def _local_artifacts(source: str, tracking_uri: str) -> Path | None:
    """The folder that an artifact address of MLflow names; None where it is not on this machine's disks."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    repository = get_artifact_repository(source, tracking_uri=tracking_uri, registry_uri=tracking_uri)
    # Addresses of runs and of models are resolved by a repository around the one that holds the files.
    repository = getattr(repository, "repo", repository)
    if not isinstance(repository, LocalArtifactRepository) or not Path(repository.artifact_dir).is_dir():
        return None
    return Path(repository.artifact_dir)


def _set_mlflow_defaults() -> None:
    """No progress bars, no log of migrations and retries, few of these; what the user has set counts."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    for noisy in ("alembic", "mlflow.store.db.utils", "urllib3.connectionpool"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


def read_lineage(folder: Path) -> dict[str, Any]:
    """The lineage record beside the weights; a ValueError when it tells of other weights."""
    path = folder / LINEAGE
    record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    digest = manifest_sha256(folder)
    if record.get("weights_sha256") not in (None, digest):
        raise UserError(f"{path} says weights_sha256 {record['weights_sha256']}, the manifest's is {digest}")
    return {**record, "weights_sha256": digest}


def build(fetched: Fetched, root: Path = ROOT, lock: Path = LOCKS["cuda"]) -> str:
    """Stores the weights, verified file by file, and builds the bento; returns its tag."""
    import bentoml
    from bentoml.exceptions import NotFound

    requirements = (root / lock).resolve()
    if not requirements.is_file():
        raise UserError(f"there is no {root / lock}, which says what the bento installs")
    labels = lineage_labels(fetched.lineage) | code_labels(root)
    tag = f"{NAME}:v{fetched.version}-{_content_digest(fetched, labels, root, requirements)[:12]}"
    try:
        bento = bentoml.bentos.get(tag)
        # The store takes the youngest for the latest; for us it is the one that was asked for last.
        Path(bento.path).with_name("latest").write_text(str(bento.tag.version), encoding="ascii")
    except NotFound:
        with tempfile.TemporaryDirectory() as context:
            for file in _source_files(root):
                target = Path(context) / file.relative_to(root)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)
            shutil.copyfile(requirements, Path(context) / requirements.name)
            bento = bentoml.build(
                SERVICE,
                name=NAME,
                version=tag.partition(":")[2],
                labels={**labels, "bento_tag": tag},
                include=[f"{package}/" for package in PACKAGES],
                models=[_store_weights(fetched)],
                # BentoML adds its own version once more, without a hash; uv, which installs them, takes both.
                python={"requirements_txt": requirements.name, "lock_packages": False},
                build_ctx=context,
            )
    return str(bento.tag)


def lineage_labels(lineage: dict[str, Any]) -> dict[str, str]:
    """The lineage as labels; the commit is said to be that of the code that trained."""
    labels = {key: str(value) for key, value in lineage.items() if isinstance(value, str | bool)}
    return labels | {f"training_{key}": labels.pop(key, UNKNOWN) for key in ("git_commit", "git_dirty")}


def code_labels(root: Path) -> dict[str, str]:
    """The commit of the code that answers, and whether that code had other changes, as labels."""
    commit, changes = _git(root, "rev-parse", "HEAD"), _git(root, "status", "--porcelain", "--", *PACKAGES)
    is_dirty = UNKNOWN if changes is None else str(bool(changes))
    return {"serving_git_commit": commit or UNKNOWN, "serving_git_dirty": is_dirty}


def _git(root: Path, *arguments: str) -> str | None:
    """What git answers; None where there is no git, or no repository."""
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
        )
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _published_folder(downloaded: Path, model_uri: str) -> Path:
    """The folder that holds the manifest; the registry may have wrapped it or put files beside it."""
    found = sorted({path.parent for path in downloaded.rglob(MANIFEST)})
    if len(found) != 1:
        raise UserError(f"{model_uri} must hold one folder with {MANIFEST}, found {len(found)}")
    return found[0]


def _store_weights(fetched: Fetched) -> str:
    import bentoml
    from bentoml.exceptions import NotFound

    tag = f"{NAME}:v{fetched.version}-{fetched.lineage['weights_sha256'][:12]}"
    try:
        stored = bentoml.models.get(tag)
    except NotFound:
        with bentoml.models.create(tag, labels=lineage_labels(fetched.lineage)):
            # The store copies what is put in here; weights are linked into its own folder afterwards.
            pass
        stored = bentoml.models.get(tag)
    folder = Path(stored.path) / WEIGHTS
    if not folder.is_dir():
        beside = folder.with_name(f".{WEIGHTS}.new")
        link_published(fetched.folder, beside)
        verify(beside)
        (beside / LINEAGE).write_text(json.dumps(fetched.lineage, indent=1) + "\n", encoding="utf-8")
        os.replace(beside, folder)
    return str(stored.tag)


def _source_files(root: Path) -> Iterator[Path]:
    for package_name in PACKAGES:
        for path in sorted((root / package_name).rglob("*")):
            inside = path.relative_to(root).parts
            if path.is_file() and not any(part.startswith((".", "__pycache__")) for part in inside):
                yield path


def _content_digest(fetched: Fetched, labels: dict[str, str], root: Path, requirements: Path) -> str:
    """Names code, requirements, weights and labels together, so that the same content has the same tag."""
    digest = hashlib.sha256(json.dumps([fetched.lineage, labels], sort_keys=True).encode())
    digest.update(requirements.read_bytes())
    for path in _source_files(root):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
