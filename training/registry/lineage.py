"""The record of where a model comes from: hashes of data, configuration, code, weights and parent model."""

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from model.errors import UserError
from model.manifest import LINEAGE, sha256_files
from training.registry.git_history import git_facts
from training.run_context import ImageFacts

CODE = Path(__file__).parents[2]
GIT_COMMIT_TAG = "mlflow.source.git.commit"
TAG_PREFIX = "vargpt."
WEIGHTS_TAG = f"{TAG_PREFIX}weights_sha256"
# The two stages that start from no other model: trained from nothing, or published weights taken over.
BACKBONES, IMPORTED = "backbones", "import"


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """What identifies a model from data to bento; None is what is not known yet, or never was.

    Args:
        stage: What made the weights: backbones, stage1 ..., or `import`.
        size, precision: What ran; they and the commit's params.yaml give the configuration that was hashed.
        parent_stage, parent_weights_sha256: The model that training started from; None where it began.
        sources_sha256: Of imported weights, the SHA-256 of every file that they were read from.
        git_dirty: Whether the code had changes that were not committed.
        training_image: Full name of the container image that it ran in.
    """

    data_md5: str | None
    config_sha256: str | None
    stage: str | None = None
    size: str | None = None
    precision: str | None = None
    parent_stage: str | None = None
    parent_weights_sha256: str | None = None
    sources_sha256: Mapping[str, str] | None = None
    git_commit: str | None = None
    git_dirty: bool | None = None
    training_image: str | None = None
    run_id: str | None = None
    model_version: str | None = None
    weights_sha256: str | None = None
    bento_tag: str | None = None

    def tags(self) -> dict[str, str]:
        """The record as MLflow tags; the commit also under the name that MLflow's own pages show."""
        known = {key: value for key, value in dataclasses.asdict(self).items() if value is not None}
        tags = {
            f"{TAG_PREFIX}{key}": value if isinstance(value, str) else json.dumps(value)
            for key, value in known.items()
        }
        return tags | ({GIT_COMMIT_TAG: self.git_commit} if self.git_commit else {})


def config_sha256(config: Mapping[str, Any]) -> str:
    """The hash of a configuration as it ran; neither the order of keys nor 1 for 1.0 matters."""
    plain = json.loads(json.dumps(config, allow_nan=False), parse_int=float)
    return sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def imported_lineage(
    sources_sha256: Mapping[str, str],
    weights_sha256: str,
    image: ImageFacts | None = None,
    run_id: str | None = None,
) -> Lineage:
    """The record of a model made of published weights: every file that it was read from, by hash.

    Args:
        image: The container image that this runs in; its commit counts where there is no history.
    """
    image = image or ImageFacts()
    found, is_dirty = git_facts(CODE, image.commit, image.is_dirty)
    return Lineage(
        stage=IMPORTED,
        data_md5=None,
        config_sha256=None,
        sources_sha256=dict(sources_sha256),
        git_commit=found,
        git_dirty=is_dirty,
        training_image=image.name,
        run_id=run_id,
        weights_sha256=weights_sha256,
    )


def hashes_of_sources(sources: Iterable[Path]) -> dict[str, str]:
    """SHA-256 of files, and of all files of folders but hidden ones, by their names from a source on."""
    found = {}
    for source in sources:
        for file in [source] if source.is_file() else sorted(source.rglob("*")):
            inside = file.relative_to(source.parent)
            if file.is_file() and not any(part.startswith(".") for part in inside.parts):
                found[inside.as_posix()] = file
    return sha256_files(found)


def write_lineage(record: Lineage, folder: Path) -> None:
    """Write lineage.json beside the weights, whole or not at all."""
    path = Path(folder) / LINEAGE
    # Hidden, because a stray file beside the weights would make the folder's manifest wrong.
    beside = path.with_name(f".{LINEAGE}.tmp")
    beside.write_text(json.dumps(dataclasses.asdict(record), indent=1) + "\n", encoding="utf-8")
    os.replace(beside, path)


def read_lineage(folder: Path) -> Lineage:
    """The record beside the weights; a ValueError names the file when it is missing or not one."""
    path = Path(folder) / LINEAGE
    try:
        return Lineage(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: where the model comes from is not known") from None
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is not a lineage record: {error}") from None
