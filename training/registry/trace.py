"""Walks from a model back to its data and to the models it was trained from, verifying every recorded hash.

Data pointer and configuration are read as they were at the recorded commit, so a model stays right when data
and parameters move on. What cannot be found any more is unknown, which is neither right nor wrong.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.errors import UserError
from model.manifest import manifest_sha256, verify
from model.weights_address import missing_weights, verify_small_files
from training.params import parse_params, values_for_size
from training.registry.data_pointer import data_md5, data_path, md5_in, md5_on_disk
from training.registry.git_history import has_commit, is_repository, text_at
from training.registry.lineage import BACKBONES, IMPORTED, Lineage, config_sha256, read_lineage
from training.registry.stage_folders import config_of

DATA_POINTER, PARAMS = "data.dvc", "params.yaml"
# They start from no other model.
FIRST_STAGES = (BACKBONES, IMPORTED)


@dataclass(frozen=True)
class HashCheck:
    """A recorded value against what was found; `is_right` is None where it cannot be known here."""

    name: str
    recorded: str | None
    found: str
    is_right: bool | None


@dataclass(frozen=True)
class ChainLink:
    """One model of the chain: the stage that made it, its weights, where it lies, and its checks.

    `folder` is None where the model is not here (any more). The chain ends there: its record is not either.
    """

    stage: str
    weights_sha256: str | None
    folder: str | None
    sources_sha256: dict[str, str] | None
    checks: tuple[HashCheck, ...]


def trace_lineage(folder: Path, root: Path, outputs: Path) -> list[ChainLink]:
    """Every model from a folder's back to the first; UserError when the folder has no record to follow.

    Args:
        root: The repository, with the history of the code and data.dvc.
        outputs: Where models that training started from are looked for, as OUTPUTS/STAGE/model.
    """
    record, data_on_disk = read_lineage(folder), _data_on_disk(Path(root) / DATA_POINTER)
    chain = [_link(record, Path(folder), Path(root), data_on_disk)]
    while record.parent_stage is not None:
        stage, weights = record.parent_stage, record.parent_weights_sha256
        if weights in [link.weights_sha256 for link in chain]:
            raise UserError(f"the record of {chain[-1].folder} names a parent that comes after it: {weights}")
        parent = Path(outputs) / stage / "model"
        if (absence := _absence(parent, weights)) is not None:
            missing = HashCheck("weights", weights, absence, None)
            return [*chain, ChainLink(stage, weights, None, None, (missing,))]
        record = read_lineage(parent)
        chain.append(_link(record, parent, Path(root), data_on_disk))
    return chain


def _absence(folder: Path, weights: str | None) -> str | None:
    """Why the model with these weights and its record are not in a folder; None when they are."""
    try:
        found = manifest_sha256(folder)
        read_lineage(folder)
    except UserError as error:
        return f"not here: {error}"
    return None if found == weights else f"not here: {folder} has {found}"


def _link(record: Lineage, folder: Path, root: Path, data_on_disk: tuple[str | None, str]) -> ChainLink:
    sources = None if record.sources_sha256 is None else dict(record.sources_sha256)
    checks = [_weights_check(record, folder)]
    # Weights that were not trained here have neither data nor configuration.
    if sources is None:
        checks += [_pointer_check(record, root), _data_check(record, *data_on_disk)]
    checks.append(_commit_check(record, root))
    if sources is None:
        checks.append(_config_check(record, root))
    if record.parent_stage is None and record.stage not in FIRST_STAGES:
        checks.append(HashCheck("parent", None, "not recorded", None))
    return ChainLink(record.stage or "unknown", record.weights_sha256, str(folder), sources, tuple(checks))


def _weights_check(record: Lineage, folder: Path) -> HashCheck:
    """The files by their manifest, and the manifest by the record; weights may lie on a volume elsewhere."""
    name, elsewhere = "weights", missing_weights(folder)
    try:
        verify(folder) if elsewhere is None else verify_small_files(folder)
        found = manifest_sha256(folder)
    except UserError as error:
        return HashCheck(name, record.weights_sha256, str(error), False)
    if elsewhere is None or found != record.weights_sha256:
        return _compared(name, record.weights_sha256, found)
    return HashCheck(
        name, found, f"not here: they lie in {elsewhere}; manifest and small files are right", None
    )


def _commit_check(record: Lineage, root: Path) -> HashCheck:
    """A commit is right when the history knows it and the tree was clean."""
    name, commit = "git commit", record.git_commit
    if commit is None:
        return HashCheck(name, None, "not recorded", None)
    if not is_repository(root):
        return HashCheck(name, commit, f"{root} is no git repository", None)
    if not has_commit(root, commit):
        return HashCheck(name, commit, "not in the history of this repository", False)
    if record.git_dirty is None:
        return HashCheck(name, commit, "known, but whether the code had other changes was not recorded", None)
    if record.git_dirty:
        return HashCheck(name, commit, "known, but the code had changes that were not committed", False)
    return HashCheck(name, commit, commit, True)


def _pointer_check(record: Lineage, root: Path) -> HashCheck:
    """What data.dvc said at the recorded commit."""
    name = "data pointer"
    text = record.git_commit and text_at(root, record.git_commit, DATA_POINTER)
    if not text:
        return HashCheck(name, record.data_md5, f"no {DATA_POINTER} of the recorded commit here", None)
    try:
        return _compared(name, record.data_md5, md5_in(text, f"{DATA_POINTER} at {record.git_commit}"))
    except UserError as error:
        return HashCheck(name, record.data_md5, str(error), None)


def _data_on_disk(pointer: Path) -> tuple[str | None, str]:
    """The hash that data.dvc names today, and that of the data as it lies, or why there is none."""
    try:
        return data_md5(pointer), md5_on_disk(data_path(pointer))
    except UserError as error:
        return None, str(error)


def _data_check(record: Lineage, named: str | None, found: str) -> HashCheck:
    """The files themselves, as far as the recorded data is what data.dvc names today."""
    if named is None:
        return HashCheck("data", record.data_md5, f"not here: {found}", None)
    if named != record.data_md5:
        return HashCheck("data", record.data_md5, f"not here: {DATA_POINTER} names {named} today", None)
    return _compared("data", record.data_md5, found)


def _config_check(record: Lineage, root: Path) -> HashCheck:
    """What params.yaml said at the recorded commit, for the size that ran."""
    name = "config"
    text = record.git_commit and text_at(root, record.git_commit, PARAMS)
    if not (text and record.size and record.stage):
        why = f"no {PARAMS} of the recorded commit here" if not text else "stage and size are not recorded"
        return HashCheck(name, record.config_sha256, why, None)
    try:
        values = values_for_size(text, record.size, f"{PARAMS} at {record.git_commit}")
        config = config_of({**_with_defaults(values), "precision": record.precision}, record.stage)
    except KeyError as error:
        return HashCheck(name, record.config_sha256, f"{PARAMS} had no {error} then", None)
    except UserError as error:
        return HashCheck(name, record.config_sha256, str(error), None)
    return _compared(name, record.config_sha256, config_sha256(config))


def _with_defaults(values: dict[str, Any]) -> dict[str, Any]:
    """Parameters with what their file leaves out, as training counts it; of an older file as they are."""
    try:
        return parse_params(values).model_dump()
    except UserError:
        return values


def _compared(name: str, recorded: str | None, found: str) -> HashCheck:
    return HashCheck(name, recorded, found, recorded == found)
