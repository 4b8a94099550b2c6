"""A run repeated from its record alone, in a folder of its own; do the same weights come out?"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from model.errors import UserError
from training.registry.git_history import git_facts
from training.registry.stage_folders import StageFolders
from training.runs.recorded_run import RecordedRun, recorded_run

FOLDER = "rerun"


@dataclass(frozen=True)
class Rerun:
    """A run and its repetition, by the hashes of their weights."""

    run_id: str
    stage: str
    folder: str
    expected_sha256: str
    weights_sha256: str

    @property
    def is_identical(self) -> bool:
        """Whether both published the same bytes."""
        return self.expected_sha256 == self.weights_sha256


def rerun(run: str, tracking_uri: str, folders: StageFolders, any_code: bool) -> Rerun:
    """Repeat a run with as many processes as it had.

    Args:
        folders: Where data and the model that the run started from are expected; its stage is not looked at.
        any_code: Repeat it, too, with other code than it had.

    Raises:
        UserError: code, data, or the weights that it started from are not those of the run.
        ConnectionError: MLflow cannot be reached.
        subprocess.CalledProcessError: the repetition failed, as it has logged.
    """
    recorded = recorded_run(run, tracking_uri)
    folders = replace(folders, stage=recorded.stage)
    if recorded.weights_sha256 is None:
        raise UserError(f"run {run} has published no weights to compare with")
    _refuse_other_inputs(recorded, folders, any_code)
    folder = folders.outputs / FOLDER / recorded.run_id
    _lay_out(folder, recorded, folders)
    command = [sys.executable, "-m", "training.launching", recorded.stage]
    command += ["--nproc", str(recorded.num_processes)]
    search_path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    # Not an argument: lists of processes show those, and an address may hold a password.
    environment = {**os.environ, "PYTHONPATH": search_path, "MLFLOW_TRACKING_URI": tracking_uri}
    subprocess.run(command, cwd=folder, env=environment, check=True)
    pointer = json.loads((folder / "artifacts" / f"{recorded.stage}.json").read_text())
    found = pointer["weights_sha256"]
    return Rerun(recorded.run_id, recorded.stage, str(folder), recorded.weights_sha256, found)


def _refuse_other_inputs(recorded: RecordedRun, folders: StageFolders, any_code: bool) -> None:
    commit, is_dirty = git_facts(folders.data_pointer.resolve().parent, None)
    if not any_code and (commit != recorded.git_commit or is_dirty):
        here = f"{commit}{' with changes' if is_dirty else ''}"
        raise UserError(
            f"run {recorded.run_id} had the code of commit {recorded.git_commit}, here is {here}: "
            f"git checkout {recorded.git_commit}, or say --any-code"
        )
    lineage = folders.lineage(recorded.params, None, recorded.parent_stage)
    for what, then, now in (
        ("data", recorded.data_md5, lineage.data_md5),
        (
            f"weights of {recorded.parent_stage}",
            recorded.parent_weights_sha256,
            lineage.parent_weights_sha256,
        ),
    ):
        if then != now:
            raise UserError(f"the {what} here are {now}, run {recorded.run_id} had {then}: dvc checkout")


def _lay_out(folder: Path, recorded: RecordedRun, folders: StageFolders) -> None:
    """A folder to run the stage in: the run's parameters, and links to data and to what it starts from."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "outputs" / recorded.parent_stage).mkdir(parents=True)
    (folder / "params.yaml").write_text(recorded.params.model_dump_json(indent=1), encoding="utf-8")
    parent = Path(recorded.parent_stage) / "model"
    links = {
        "data.dvc": folders.data_pointer,
        "prepared": folders.prepared,
        "data": folders.data_pointer.with_suffix(""),
        f"outputs/{parent}": folders.outputs / parent,
        "outputs/index": folders.outputs / "index",
        "outputs/codes": folders.outputs / "codes",
    }
    for name, target in links.items():
        if target.exists():
            (folder / name).symlink_to(target.resolve())
