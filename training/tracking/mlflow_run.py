"""Writes a spool's records to one MLflow run, idempotently: a record that is sent again counts once.

The run is found by a tag that holds our own name for it, because MLflow chooses its ids itself and may be out
of reach when training starts. A metric's step must grow: what is not beyond the last step that MLflow has is
skipped, so a resumed job does not log the steps that it repeats. The same holds for pictures.
"""

import fcntl
import json
import logging
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from model.errors import redact
from training.tracking.spool import Record, Spool

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

logger = logging.getLogger(__name__)

RUN_TAG, STAGE_TAG = "vargpt.run", "vargpt.stage"
# Which of its views MLflow opens an experiment in; a person may choose another.
KIND_TAG, TRAINING_KIND = "mlflow.experimentKind", "custom_model_development"
# Limits of MLflow 3.17 (mlflow/utils/validation.py).
MAX_PARAM, MAX_TAG, MAX_DIGEST = 6000, 8000, 36
# A server that does not answer must not hold us; training goes on and the spool keeps what is unsent.
REQUEST_SECONDS, REQUEST_RETRIES = 10, 0
REFUSALS = frozenset({"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST"})
IMAGE_FILE = re.compile(r"images/(?P<name>.+)[+%]step[+%](?P<step>\d+)[+%]timestamp[+%].*compressed.*")


class RefusedError(Exception):
    """MLflow will never take this record, however often it is sent."""


def connect(uri: str, seconds: int = REQUEST_SECONDS, retries: int = REQUEST_RETRIES) -> "MlflowClient":
    """A client with short timeouts and without progress bars, unless the user has set others.

    Importing MLflow takes seconds, so it is imported here.
    """
    from mlflow import MlflowClient
    from mlflow import environment_variables as settings

    defaults = (
        (settings.MLFLOW_HTTP_REQUEST_TIMEOUT, seconds),
        (settings.MLFLOW_HTTP_REQUEST_MAX_RETRIES, retries),
        # Standard output is ours: commands print JSON there.
        (settings.MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT, True),
        (settings.MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR, False),
    )
    for variable, value in defaults:
        if not variable.is_set():
            variable.set(value)
    for noisy in ("alembic", "mlflow.store.db.utils", "urllib3.connectionpool"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    database = _sqlite_file(uri)
    if database and not database.exists():
        _create(database)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _create(database: Path) -> None:
    """Create the tables in a file beside and rename it: safe from kills and from a second process."""
    from mlflow import MlflowClient

    database.parent.mkdir(parents=True, exist_ok=True)
    beside = database.with_name(f"{database.name}.new")
    with database.with_name(f"{database.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not database.exists():
            beside.unlink(missing_ok=True)
            MlflowClient(f"sqlite:///{beside}").search_experiments(max_results=1)
            os.replace(beside, database)


def outage_errors() -> tuple[type[Exception], ...]:
    """What an MLflow that cannot be reached, or answers nonsense, raises."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return (MlflowException, SQLAlchemyError, OSError)


def find_run(client: "MlflowClient", run: str) -> "Run | None":
    """The MLflow run that has this name of ours, or this MLflow id; None when there is none (yet)."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    quoted = run.replace("'", "")
    wanted = f"tags.`{RUN_TAG}` = '{quoted}' OR attributes.run_id = '{quoted}'"
    for condition in wanted.split(" OR "):
        if experiments and (found := client.search_runs(experiments, condition, max_results=1)):
            return found[0]
    return None


def create_registered_model(client: "MlflowClient", name: str) -> None:
    """Create a registered model where it does not exist."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


class MlflowRunWriter:
    """The MLflow run that the first record of a spool names, created where it does not exist."""

    def __init__(self, client: "MlflowClient", uri: str, head: Record) -> None:
        self._client = client
        run = find_run(client, head["run"]) or self._create(uri, head)
        self.run_id: str = run.info.run_id
        self._status = run.info.status
        self._started_ms = run.info.start_time
        self._params = dict(run.data.params)
        # RunData keeps the step of each key's latest value, but only under this name.
        self._last_step = {metric.key: metric.step for metric in run.data._metric_objs}
        self._images: set[tuple[str, int]] | None = None

    def _create(self, uri: str, head: Record) -> "Run":
        tags = {RUN_TAG: head["run"], STAGE_TAG: head["stage"]}
        name = f"{head['stage']}-{head['run'][:8]}"
        experiment_id = self._experiment(uri, head["experiment"])
        return self._client.create_run(experiment_id, start_time=head["time"], tags=tags, run_name=name)

    def _experiment(self, uri: str, name: str) -> str:
        """The id of the experiment of this name, created where it does not exist."""
        experiment = self._client.get_experiment_by_name(name)
        if experiment is None:
            kind = {KIND_TAG: TRAINING_KIND}
            return str(self._client.create_experiment(name, artifact_location(uri), tags=kind))
        if KIND_TAG not in experiment.tags:
            self._client.set_experiment_tag(experiment.experiment_id, KIND_TAG, TRAINING_KIND)
        return str(experiment.experiment_id)

    def send(self, records: list[Record], spool: Spool, is_live: bool) -> None:
        """Send one batch of one kind; RefusedError when it can never be taken."""
        from mlflow.exceptions import MlflowException

        try:
            getattr(self, f"_send_{records[0]['kind']}")(records, spool, is_live)
        except MlflowException as error:
            if error.error_code in REFUSALS:
                raise RefusedError(redact(error)) from error
            raise

    def end(self, status: str, time: int) -> None:
        """Set the run's final status and end time (milliseconds since 1970)."""
        self._client.set_terminated(self.run_id, status, time)
        self._status = status

    def end_if_running(self, time: int) -> None:
        """Mark a run as KILLED whose process has gone without a final record."""
        if self._status == "RUNNING":
            self.end("KILLED", time)

    def _send_start(self, records: list[Record], spool: Spool, is_live: bool) -> None:
        from mlflow.entities import Param, RunTag

        record = records[0]
        new = {key: value[:MAX_PARAM] for key, value in record["params"].items()}
        # MLflow lets no parameter change; a resumed job that was given another value says so in a tag.
        changed = {f"changed.{k}": v for k, v in new.items() if self._params.get(k, v) != v}
        params = [Param(key, value) for key, value in new.items() if key not in self._params]
        tags = [RunTag(key, value[:MAX_TAG]) for key, value in (record["tags"] | changed).items()]
        self._client.log_batch(self.run_id, params=params, tags=tags)
        self._params |= {param.key: param.value for param in params}
        if is_live and self._status != "RUNNING":
            self._client.update_run(self.run_id, status="RUNNING")
            self._status = "RUNNING"

    def _send_metrics(self, records: list[Record], spool: Spool, is_live: bool) -> None:
        from mlflow.entities import Metric

        last, metrics = dict(self._last_step), []
        for record in records:
            step = self._step(record)
            for key, value in record["values"].items():
                if step > last.get(key, -1):
                    # Not-a-number and infinity are words in the spool.
                    metrics.append(Metric(key, float(value), record["time"], step))
                    last[key] = step
        if metrics:
            self._client.log_batch(self.run_id, metrics=metrics)
        self._last_step = last

    def _step(self, record: Record) -> int:
        """The training step, or for system metrics the whole seconds since the run began."""
        return (
            max(0, (record["time"] - self._started_ms) // 1000) if record["step"] is None else record["step"]
        )

    def _send_tags(self, records: list[Record], spool: Spool, is_live: bool) -> None:
        from mlflow.entities import RunTag

        tags = [RunTag(key, value[:MAX_TAG]) for key, value in records[0]["tags"].items()]
        self._client.log_batch(self.run_id, tags=tags)

    def _send_dataset(self, records: list[Record], spool: Spool, is_live: bool) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        record = records[0]
        source = json.dumps({"path": record["path"], "md5": record["md5"]})
        digest = record["md5"].removesuffix(".dir")[:MAX_DIGEST]
        dataset = Dataset(record["name"], digest, source_type="dvc", source=source)
        tags = [InputTag("mlflow.data.context", record["context"]), InputTag("dvc.md5", record["md5"])]
        self._client.log_inputs(self.run_id, [DatasetInput(dataset, tags)])

    def _send_image(self, records: list[Record], spool: Spool, is_live: bool) -> None:
        record = records[0]
        if self._images is None:
            self._images = {
                _image_of(file.path) for file in self._client.list_artifacts(self.run_id, "images")
            }
        # MLflow writes the slashes of a name as tildes.
        identity = (record["name"].replace("/", "~"), record["step"])
        if identity in self._images:
            return
        self._client.log_image(
            self.run_id,
            _picture(spool.files / record["file"]),
            key=record["name"],
            step=record["step"],
            timestamp=record["time"],
            synchronous=True,
        )
        self._images.add(identity)

    def _send_artifact(self, records: list[Record], spool: Spool, is_live: bool) -> None:
        path = _existing(spool.files / records[0]["file"])
        self._client.log_artifact(self.run_id, str(path), records[0]["folder"] or None)

    def _send_model_version(self, records: list[Record], spool: Spool, is_live: bool) -> None:
        from mlflow.exceptions import MlflowException

        record = records[0]
        name, tags = record["name"], {key: value[:MAX_TAG] for key, value in record["tags"].items()}
        try:
            create_registered_model(self._client, name)
            versions = self._client.search_model_versions(f"name = '{name}' AND run_id = '{self.run_id}'")
            if not any(tags.items() <= version.tags.items() for version in versions):
                source = f"runs:/{self.run_id}/{record['folder']}"
                self._client.create_model_version(name, source, self.run_id, tags, await_creation_for=0)
        except MlflowException as error:
            # The run, which the account may write, must not wait for the model, which it may not.
            if error.error_code == "PERMISSION_DENIED":
                raise RefusedError(redact(error)) from error
            raise

    def _send_finish(self, records: list[Record], spool: Spool, is_live: bool) -> None:
        self.end(records[0]["status"], records[0]["time"])


def artifact_location(uri: str) -> str | None:
    """Beside the database where the store is a bare sqlite file; a server decides for itself."""
    database = _sqlite_file(uri)
    return (database.parent / "mlartifacts").resolve().as_uri() if database else None


def _sqlite_file(uri: str) -> Path | None:
    prefix, _, path = uri.partition(":///")
    return Path(path.partition("?")[0]) if prefix == "sqlite" and path else None


def _picture(path: Path) -> Image.Image:
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except OSError as error:
        raise RefusedError(f"{path} is no picture: {error}") from error


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise RefusedError(f"{path} is gone")
    return path


def _image_of(path: str) -> tuple[Any, ...]:
    match = IMAGE_FILE.fullmatch(path)
    return (match["name"], int(match["step"])) if match else ()
