"""What MLflow keeps of a run of a stage: enough to repeat it."""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from model.errors import UserError, redact, tracking_failure
from training.params import Params, parse_params
from training.registry.lineage import TAG_PREFIX
from training.stages.run import PARAMS_ARTIFACT, PROCESSES_TAG
from training.tracking.mlflow_run import STAGE_TAG, connect, find_run, outage_errors

if TYPE_CHECKING:
    from mlflow.entities import Run


@dataclass(frozen=True)
class RecordedRun:
    """A run of a stage, as it was recorded.

    Args:
        num_processes: Over all nodes, in its last attempt.
        weights_sha256: Of the model that it published; None when it has not ended well.
    """

    run_id: str
    stage: str
    params: Params
    num_processes: int
    git_commit: str | None
    data_md5: str
    parent_stage: str
    parent_weights_sha256: str
    weights_sha256: str | None


def recorded_run(run: str, tracking_uri: str) -> RecordedRun:
    """The run of this MLflow id, or of our own name for it.

    Raises:
        UserError: MLflow knows none, or it is not of a stage that starts from another.
        ConnectionError: MLflow cannot be reached.
    """
    try:
        client = connect(tracking_uri)
        found = find_run(client, run)
        if found is None:
            raise UserError(f"MLflow at {redact(tracking_uri)} knows no run {run!r}")
        _refuse_incomplete(found, run)
        with tempfile.TemporaryDirectory() as folder:
            path = client.download_artifacts(found.info.run_id, PARAMS_ARTIFACT, folder)
            params = parse_params(json.loads(Path(path).read_text(encoding="utf-8")))
    except outage_errors() as error:
        address, reason = redact(tracking_uri), redact(error).partition("\n")[0]
        raise tracking_failure(error, f"MLflow at {address} cannot be read: {reason}") from None
    tags = found.data.tags
    return RecordedRun(
        found.info.run_id,
        tags[STAGE_TAG],
        params,
        int(tags[PROCESSES_TAG]),
        tags.get(f"{TAG_PREFIX}git_commit"),
        tags[f"{TAG_PREFIX}data_md5"],
        tags[f"{TAG_PREFIX}parent_stage"],
        tags[f"{TAG_PREFIX}parent_weights_sha256"],
        tags.get(f"{TAG_PREFIX}weights_sha256"),
    )


def _refuse_incomplete(found: "Run", run: str) -> None:
    needed = [
        STAGE_TAG,
        PROCESSES_TAG,
        *(TAG_PREFIX + name for name in ("parent_stage", "parent_weights_sha256")),
    ]
    if missing := [tag for tag in needed if tag not in found.data.tags]:
        raise UserError(f"run {run} cannot be repeated: its tag {missing[0]} is missing")
