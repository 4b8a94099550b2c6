"""The spool: append-only journals of all that is tracked, so that nothing is lost while MLflow is away.

One journal per start of a run: `NAME.jsonl` (one record a line), `NAME.sent` (how many bytes have arrived),
`NAME.files/` (pictures, small artifacts), `NAME.refused.jsonl` (what MLflow will never take, and why). The
writer holds a lock on the journal for as long as it lives; one that can be locked has lost its writer.
"""

import fcntl
import json
import logging
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

# MLflow takes at most this many metrics in one request.
BATCH_VALUES = 1000

Record = dict[str, Any]


class Journal:
    """Writes a journal: appends whole lines from any thread; a full disk costs records, not the training."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_EXCL, 0o644)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        self._path = path
        self._lock = threading.Lock()
        self._separator = b""
        self.lost = 0

    def append(self, record: Record) -> None:
        """Write one record; what does not fit on the disk is counted in `lost` and warned of once."""
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        with self._lock:
            try:
                written = os.write(self._descriptor, self._separator + line)
                whole = written == len(self._separator) + len(line)
                reason: object = "the disk took only a part of it"
            except OSError as error:
                whole, reason = False, error
            # The next line must not run into a torn one.
            self._separator = b"" if whole else b"\n"
            self.lost += not whole
            if self.lost == 1 and not whole:
                logger.warning("a tracking record could not be written to %s: %s", self._path, reason)

    def close(self) -> None:
        """Flush to the disk and let go of the lock."""
        os.fsync(self._descriptor)
        os.close(self._descriptor)


class Spool:
    """Reads one journal: the records that have not been sent yet, in order."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = path.with_suffix(".files")
        self._sent_path = path.with_suffix(".sent")
        self.sent = self._read_sent()

    def _read_sent(self) -> int:
        """Where to go on; from the start if that is not known, which is safe because nothing counts twice."""
        try:
            return int(self._sent_path.read_text())
        except (FileNotFoundError, ValueError):
            return 0

    def head(self) -> Record | None:
        """The first record, which says which run this is; None when not even that was written."""
        with self.path.open("rb") as file:
            return _parse(file.readline())

    def batches(self) -> Iterator[tuple[list[Record], int]]:
        """Unsent records with the offset behind them; metrics in a row go together, all else goes alone.

        A torn last line is left alone: its writer may still be at it, or was killed.
        """
        batch: list[Record] = []
        num_values, end = 0, self.sent
        with self.path.open("rb") as file:
            file.seek(self.sent)
            for line in file:
                record = _parse(line)
                if record is None and not line.endswith(b"\n"):
                    break
                joins = record is None or (record["kind"] == "metrics" and num_values < BATCH_VALUES)
                if batch and not (joins and batch[0]["kind"] == "metrics"):
                    yield batch, end
                    batch, num_values = [], 0
                if record is not None:
                    batch.append(record)
                    num_values += len(record.get("values", ()))
                end += len(line)
        if batch or end > self.sent:
            yield batch, end

    def last(self) -> Record | None:
        """The last whole record."""
        found = None
        with self.path.open("rb") as file:
            for line in file:
                found = _parse(line) or found
        return found

    def mark_sent(self, offset: int) -> None:
        """Remember that everything before this offset has arrived, even if we are killed now."""
        beside = self._sent_path.with_suffix(".sent-tmp")
        beside.write_text(str(offset))
        os.replace(beside, self._sent_path)
        self.sent = offset

    def refuse(self, record: Record, reason: str) -> None:
        """Put aside a record that MLflow will never take, with its reason."""
        path = self.path.with_suffix(".refused.jsonl")
        logger.warning("MLflow refuses a %s record, kept in %s: %s", record["kind"], path, reason)
        with path.open("a") as file:
            file.write(json.dumps(record | {"refused": reason}) + "\n")

    def remove(self) -> None:
        """Delete what has been sent; refused records stay."""
        shutil.rmtree(self.files, ignore_errors=True)
        self.path.unlink(missing_ok=True)
        self._sent_path.unlink(missing_ok=True)


def journals(spool_dir: Path) -> list[Path]:
    """All journals of a folder, oldest first: their names begin with the time."""
    return sorted(
        path for path in Path(spool_dir).glob("*.jsonl") if not path.name.endswith(".refused.jsonl")
    )


def try_lock(path: Path) -> int | None:
    """A descriptor that holds the lock of an abandoned journal, to be closed; None if it is in use."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _parse(line: bytes) -> Record | None:
    """One record, or None for a line that a full disk or a kill has torn."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and "kind" in record else None
