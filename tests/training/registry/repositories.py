"""Small repositories with real git and real DVC, and published models with their records."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from model.manifest import write_manifest
from training.params import values_for_size
from training.registry.data_pointer import data_md5
from training.registry.git_history import git_facts
from training.registry.lineage import Lineage, config_sha256, write_lineage
from training.registry.stage_folders import config_of

DVC = str(Path(sys.executable).with_name("dvc"))
PARAMS = """size: tiny
preset: tiny
precision: auto
seed: 0
prepare: {scenes: 20, augment: 1}
optimizer: {clip_norm: 1.0}
backbones: {tokenizer: {steps: 4}}
stage1: {steps: 10, lr: 0.001}
stage2: {steps: 20, lr: 0.001}
stage3: {steps: 30, lr: 0.001}
smoke: {stage3: {steps: 3}}
"""


def run(folder: Path, *command: str) -> str:
    environment = os.environ | {"DVC_NO_ANALYTICS": "1", "GIT_CONFIG_GLOBAL": os.devnull}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=Test", "-c", "user.email=test@example.com", "-c", "commit.gpgsign=false")
    return run(folder, "git", *identity, *arguments)


def commit(folder: Path, message: str) -> str:
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", message)
    return git(folder, "rev-parse", "HEAD")


def move_data_on(repository: Path) -> None:
    """Another version of the data, and other parameters, committed as they are on any day."""
    (repository / "data" / "a.csv").write_text("changed\n")
    run(repository, DVC, "add", "-q", "data")
    (repository / "params.yaml").write_text(PARAMS.replace("lr: 0.001", "lr: 0.002"))
    commit(repository, "newer data and rates")


def publish(repository: Path, stage: str, parent: str | None = None, /, **facts: Any) -> Path:
    """The model of a stage below outputs/, with the record of a run in the repository as it is."""
    folder = repository / "outputs" / stage / "model"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(f"weights of {stage}".encode())
    (folder / "config.json").write_text("{}")
    head, is_dirty = git_facts(repository)
    values = values_for_size((repository / "params.yaml").read_text(), "smoke", "params")
    record = {
        "stage": stage,
        "size": "smoke",
        "precision": "bf16",
        "data_md5": data_md5(repository / "data.dvc"),
        "config_sha256": config_sha256(config_of({**values, "precision": "bf16"}, stage)),
        "git_commit": head,
        "git_dirty": is_dirty,
        "weights_sha256": write_manifest(folder),
    }
    if parent is not None:
        parent_weights = write_manifest(repository / "outputs" / parent / "model")
        record |= {"parent_stage": parent, "parent_weights_sha256": parent_weights}
    write_lineage(Lineage(**{**record, **facts}), folder)
    return folder
