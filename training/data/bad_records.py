"""Log of bad records: counted by dataset, listed with file, index and reason; too many stop the run."""

import json
import logging
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from model.errors import UserError

logger = logging.getLogger(__name__)

NUM_EXAMPLES = 3


class TooManyBadRecords(UserError):  # noqa: N818 - it reads as what went wrong
    """The share of bad records of a dataset is above the limit."""


@dataclass(frozen=True, slots=True)
class BadRecord:
    """One bad record: its file, its index in that file, counted from 0, and what is wrong with it."""

    dataset: str
    file: str
    index: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}[{self.index}]: {self.reason}"


class BadRecordLog:
    """All bad records of a run, and the number of good ones of each dataset."""

    def __init__(self) -> None:
        self.records: list[BadRecord] = []
        self.num_good: Counter[str] = Counter()

    def add(self, dataset: str, file: Path | str, index: int, reason: str) -> None:
        """Log a record that its reader cannot parse."""
        self.records.append(BadRecord(dataset, str(file), index, reason))

    def add_good(self, dataset: str, count: int) -> None:
        """Count records that were parsed."""
        self.num_good[dataset] += count

    def reclassify_as_bad(self, dataset: str, index: int, reason: str, share_limit: float) -> None:
        """Log a record that was counted as good and turns out to be bad in training, such as one too long.

        Raises TooManyBadRecords when this brings the dataset's share of bad records above the limit.
        """
        self.num_good[dataset] -= 1
        self.add(dataset, dataset, index, reason)
        logger.warning("left out: %s", self.records[-1])
        self._check_share(dataset, share_limit)

    def bad_shares(self) -> dict[str, float]:
        """Bad records as a share of all records, 0 to 1, of every dataset that has any records."""
        bad = Counter(record.dataset for record in self.records)
        return {name: bad[name] / total for name, total in (self.num_good + bad).items()}

    def check(self, share_limit: float) -> None:
        """Warn about every dataset with bad records; TooManyBadRecords when a share is above the limit."""
        for name, share in self.bad_shares().items():
            self._check_share(name, share_limit)
            if share:
                logger.warning("%s", self._summary(name))

    def _check_share(self, dataset: str, share_limit: float) -> None:
        if self.bad_shares()[dataset] > share_limit:
            raise TooManyBadRecords(f"{self._summary(dataset)} (allowed: a share of {share_limit:g})")

    def _summary(self, dataset: str) -> str:
        found = [record for record in self.records if record.dataset == dataset]
        total = len(found) + self.num_good[dataset]
        examples = "; ".join(map(str, found[:NUM_EXAMPLES]))
        return f"{dataset}: {len(found)} of {total} records are bad, such as {examples}"

    def save(self, path: Path) -> None:
        """Write every bad record, and the counts of every dataset, as JSON."""
        bad = Counter(record.dataset for record in self.records)
        counts = {
            name: {"good": self.num_good[name], "bad": bad[name], "share": share}
            for name, share in self.bad_shares().items()
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        listed = [asdict(record) for record in self.records]
        path.write_text(json.dumps({"datasets": counts, "bad_records": listed}, indent=1) + "\n")
