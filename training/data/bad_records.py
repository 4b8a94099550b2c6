"""Bad records of the data: counted, listed with file, index and reason; too many of them stop the run."""

import json
import logging
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from model.errors import UserError

logger = logging.getLogger(__name__)

SHOWN = 3


class TooManyBadRecords(UserError):  # noqa: N818 - it reads as what went wrong
    """More records of a dataset are bad than its user accepts."""


@dataclass(frozen=True, slots=True)
class BadRecord:
    """One bad record: where it lies, counted from 0 within its file, and what is wrong."""

    dataset: str
    file: str
    index: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}[{self.index}]: {self.reason}"


class BadRecordLog:
    """Bad records that readers and batches find, and how many good ones there are, by dataset."""

    def __init__(self) -> None:
        self.records: list[BadRecord] = []
        self.num_good: Counter[str] = Counter()

    def add(self, dataset: str, file: Path | str, index: int, reason: str) -> None:
        """Count a record that a reader cannot take."""
        self.records.append(BadRecord(dataset, str(file), index, reason))

    def add_late(self, dataset: str, index: int, reason: str, share_limit: float) -> None:
        """Count a record that was good for its reader and turns out to be bad in training.

        Raises TooManyBadRecords when more than this share of the dataset is bad by now.
        """
        self.num_good[dataset] -= 1
        self.add(dataset, dataset, index, reason)
        logger.warning("left out: %s", self.records[-1])
        self._refuse(dataset, share_limit)

    def good(self, dataset: str, count: int = 1) -> None:
        """So many records were fine."""
        self.num_good[dataset] += count

    def shares(self) -> dict[str, float]:
        """The share of bad records of every dataset that has records, 0 to 1."""
        bad = Counter(record.dataset for record in self.records)
        return {name: bad[name] / total for name, total in (self.num_good + bad).items()}

    def check(self, share_limit: float) -> None:
        """Log what was found. Raises TooManyBadRecords when more than this share of any dataset is bad."""
        for name, share in self.shares().items():
            self._refuse(name, share_limit)
            if share:
                logger.warning("%s", self._summary(name))

    def _refuse(self, dataset: str, share_limit: float) -> None:
        if self.shares()[dataset] > share_limit:
            raise TooManyBadRecords(f"{self._summary(dataset)} (allowed: a share of {share_limit:g})")

    def _summary(self, dataset: str) -> str:
        found = [record for record in self.records if record.dataset == dataset]
        total = len(found) + self.num_good[dataset]
        first = "; ".join(map(str, found[:SHOWN]))
        return f"{dataset}: {len(found)} of {total} records are bad, such as {first}"

    def save(self, path: Path) -> None:
        """Every bad record, and the counts of every dataset, as JSON."""
        bad = Counter(record.dataset for record in self.records)
        counts = {
            name: {"good": self.num_good[name], "bad": bad[name], "share": share}
            for name, share in self.shares().items()
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        listed = [asdict(record) for record in self.records]
        path.write_text(json.dumps({"datasets": counts, "bad_records": listed}, indent=1) + "\n")
