"""Names jobs by what they do: the same work has the same name, and is found instead of done again."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from model.errors import UserError
from training.params import Params
from training.registry.code_hash import room_hashes
from training.registry.data_pointer import data_md5
from training.registry.git_history import git_facts
from training.registry.lineage import config_sha256

PIPELINE, DATA_POINTER = "dvc.yaml", "data.dvc"
PARAMS_JSON, CODE_JSON = "artifacts/params.json", "artifacts/code.json"
NAME_LENGTH = 10
# Stages that write a file of another name than their own.
MAKER = {"codes": "encode"}
# It follows the pipeline and is no stage of dvc.yaml; on one machine: `vargpt promote`, `vargpt package`.
RELEASE = "release"
RELEASE_STAGE = {
    "params": [
        {PARAMS_JSON: ["size", "promote"]},
        {"artifacts/stage3.json": ["weights_sha256"]},
        {"metrics/evaluate.json": ["subject", "draw", "vqa"]},
    ],
    "outs": ["artifacts/promotions.jsonl"],
}


@dataclass(frozen=True)
class StageIdentity:
    """All that decides what a stage makes, and the name of its job, which changes with any of it.

    Args:
        recipe: The parameters that dvc.yaml says the stage follows.
        code: Hashes of the rooms of code that it follows, by `package.room`.
        start: Hashes of the weights that it starts from.
        commit: With `-dirty` where the tree was changed since; None outside of git.
        image: Full name of the training image; without a digest, a moved tag is not noticed.
    """

    stage: str
    recipe: Mapping[str, Any]
    code: Mapping[str, str]
    start: Mapping[str, Any]
    data_md5: str
    commit: str | None
    image: str

    @property
    def name(self) -> str:
        """Of the job; a DNS label."""
        facts = {key: value for key, value in vars(self).items() if value is not None}
        return f"{self.stage}-{config_sha256(facts)[:NAME_LENGTH]}"


def stage_identity(stage: str, root: Path, params: Params, image: str) -> StageIdentity:
    """What decides a stage of the pipeline now, in the repository `root`.

    Raises:
        UserError: dvc.yaml has no such stage, or a stage before it has not run.
    """
    followed = _followed(stage, root)
    recipe, code, start = {}, {}, {}
    values, rooms = params.model_dump(), room_hashes(root)
    for file, keys in followed.items():
        if file == PARAMS_JSON:
            recipe = {key: _value_at(values, key) for key in keys}
        elif file == CODE_JSON:
            code = {key: _code_of(rooms, key) for key in keys}
        else:
            start[file] = _values_of(root / file, keys, stage)
    commit, is_dirty = git_facts(root)
    told = None if commit is None else commit + ("-dirty" if is_dirty else "")
    return StageIdentity(stage, recipe, code, start, data_md5(root / DATA_POINTER), told, image)


def stage_outputs(stage: str, root: Path) -> list[str]:
    """The files and folders that dvc.yaml says a stage writes."""
    described = _stage(stage, root)
    found: list[str] = []
    for section in ("outs", "metrics", "plots"):
        found += [one if isinstance(one, str) else next(iter(one)) for one in described.get(section, ())]
    return found


def _stages(root: Path) -> dict[str, Any]:
    path = root / PIPELINE
    if not path.is_file():
        raise UserError(f"there is no {path}: submit from the top of the repository")
    return {**yaml.safe_load(path.read_text(encoding="utf-8"))["stages"], RELEASE: RELEASE_STAGE}


def _stage(stage: str, root: Path) -> dict[str, Any]:
    stages = _stages(root)
    if stage not in stages:
        raise UserError(f"{root / PIPELINE} has no stage {stage!r}; it has {', '.join(stages)}")
    return stages[stage]


def _followed(stage: str, root: Path) -> dict[str, list[str]]:
    """Keys that a stage follows, by file."""
    entries = [entry for entry in _stage(stage, root).get("params", ()) if isinstance(entry, dict)]
    return {file: keys for entry in entries for file, keys in entry.items()}


def _code_of(rooms: Mapping[str, Any], key: str) -> str:
    """The hash of a room, or of all rooms of a package."""
    package, _, room = key.partition(".")
    return rooms[package][room] if room else config_sha256(rooms[package])


def _value_at(values: Mapping[str, Any], path: str) -> Any:
    """The value at a path such as `stage1.mixture`."""
    found: Any = values
    for key in path.split("."):
        found = found[key]
    return found


def _values_of(path: Path, keys: list[str], stage: str) -> dict[str, Any]:
    if not path.is_file():
        maker = MAKER.get(path.stem, path.stem)
        raise UserError(f"{stage} starts from what {path} names, which is not there: run {maker} first")
    values = json.loads(path.read_text(encoding="utf-8"))
    return {key: values[key] for key in keys}
