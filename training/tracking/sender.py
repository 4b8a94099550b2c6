"""Sends spools to MLflow, in a thread while training runs or by `sync_spools` later; survives outages."""

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from model.errors import redact
from training.tracking.mlflow_run import MlflowRunWriter, RefusedError, connect, outage_errors
from training.tracking.spool import Record, Spool, journals, try_lock

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

SEND_EVERY_SECONDS = 2.0
# Doubled after every failure, up to the second number.
RETRY_SECONDS = (2.0, 60.0)


@dataclass(frozen=True)
class SyncReport:
    """Which journals of a folder were sent, which belong to live runs, which were not sent and why."""

    sent: tuple[str, ...]
    in_use: tuple[str, ...]
    unsent: tuple[str, ...]
    reason: str | None


class Sender(threading.Thread):
    """Thread that sends a live run's journal to MLflow, and what earlier runs left, until told to stop."""

    def __init__(self, spool: Spool, uri: str) -> None:
        super().__init__(name="mlflow-sender", daemon=True)
        self._spool, self._uri = spool, uri
        self._wake, self._finishing = threading.Event(), threading.Event()
        self._client: MlflowClient | None = None
        self._run_writer: MlflowRunWriter | None = None
        self._has_swept = False
        self.is_complete = False
        self.reason: str | None = None

    @property
    def mlflow_run_id(self) -> str | None:
        """The id that MLflow gave the run, once it has been reached."""
        return self._run_writer.run_id if self._run_writer else None

    def finish(self, timeout_seconds: float) -> bool:
        """Send what is left; whether all arrived in time. If not, the thread goes on meanwhile."""
        self._finishing.set()
        self._wake.set()
        self.join(timeout_seconds)
        return self.is_complete

    def run(self) -> None:
        """Send until finished: once every two seconds, less and less often while MLflow is away."""
        try:
            outages = outage_errors()
        except ImportError as error:
            self.reason = f"mlflow cannot be imported: {error}"
            logger.warning("%s; tracking stays in %s", self.reason, self._spool.path)
            return
        wait = SEND_EVERY_SECONDS
        while True:
            is_last_round = self._finishing.is_set()
            try:
                self._send_all(is_last_round)
                wait, self.reason = SEND_EVERY_SECONDS, None
            except outages as error:
                is_news, self.reason = self.reason is None, redact(error)
                wait = RETRY_SECONDS[0] if is_news else min(2 * wait, RETRY_SECONDS[1])
                if is_news:
                    logger.warning(
                        "MLflow is out of reach, tracking waits in %s: %s", self._spool.path, self.reason
                    )
            if is_last_round:
                return
            self._wake.wait(wait)

    def _send_all(self, is_last_round: bool) -> None:
        """One round: what earlier attempts of this run left, then our own, then what other runs left."""
        head = self._spool.head()
        if head is None:
            return
        if self._client is None:
            self._client = connect(self._uri)
        others = [path for path in journals(self._spool.path.parent) if path != self._spool.path]
        if self._run_writer is None:
            for path in others:
                _send_abandoned(self._client, self._uri, path, only_run=head["run"], is_resumed=True)
            self._run_writer = MlflowRunWriter(self._client, self._uri, head)
        send(self._run_writer, self._spool, is_live=True)
        if is_last_round:
            self.is_complete = not any(records for records, _ in self._spool.batches())
            return
        if not self._has_swept:
            # Once is enough: a run that can never be sent must not hold up ours.
            self._has_swept = True
            for path in others:
                _send_abandoned(self._client, self._uri, path)


def sync_spools(spool_dir: Path, uri: str) -> SyncReport:
    """Send all that runs left in a folder because MLflow was away; spools of live runs are left alone."""
    sent: list[str] = []
    in_use: list[str] = []
    unsent: list[str] = []
    reason = None
    try:
        client = connect(uri)
        client.search_experiments(max_results=1)
    except outage_errors() as error:
        return SyncReport((), (), tuple(map(str, journals(spool_dir))), redact(error))
    for path in journals(spool_dir):
        try:
            (sent if _send_abandoned(client, uri, path) else in_use).append(str(path))
        except outage_errors() as error:
            unsent.append(str(path))
            reason = redact(error)
    return SyncReport(tuple(sent), tuple(in_use), tuple(unsent), reason)


def send(run_writer: MlflowRunWriter, spool: Spool, is_live: bool) -> None:
    """Send what is unsent, remembering after every batch how far we came."""
    for records, end in spool.batches():
        if records:
            _send_or_refuse(run_writer, spool, records, is_live)
        spool.mark_sent(end)


def _send_or_refuse(run_writer: MlflowRunWriter, spool: Spool, records: list[Record], is_live: bool) -> None:
    """Send a batch; when MLflow refuses it, send its records one by one and put aside those it refuses."""
    try:
        run_writer.send(records, spool, is_live)
    except RefusedError as error:
        if len(records) == 1:
            spool.refuse(records[0], str(error))
            return
        for record in records:
            _send_or_refuse(run_writer, spool, [record], is_live)


def _send_abandoned(
    client: "MlflowClient", uri: str, path: Path, only_run: str | None = None, is_resumed: bool = False
) -> bool:
    """Send and remove the journal of a process that is gone; False if it is in use or of another run."""
    with _locked(path) as is_ours:
        if not is_ours:
            return False
        spool = Spool(path)
        head, last = spool.head(), spool.last()
        if head is None or last is None:
            logger.warning("%s holds no whole record and is removed", path)
        elif only_run and head["run"] != only_run:
            return False
        else:
            run_writer = MlflowRunWriter(client, uri, head)
            send(run_writer, spool, is_live=False)
            if last["kind"] != "finish" and not is_resumed:
                run_writer.end_if_running(last["time"])
        spool.remove()
        return True


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Whether the journal is ours alone while the block runs."""
    descriptor = try_lock(path)
    try:
        # Between listing and locking another process may have sent and removed it.
        yield descriptor is not None and path.exists()
    finally:
        if descriptor is not None:
            os.close(descriptor)
