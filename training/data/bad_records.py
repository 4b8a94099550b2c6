"""Bad records of the data: counted, listed with file, index and reason, and too many of them stop the run."""

import json
import logging
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

SHOWN = 3


class TooManyBadRecords(ValueError):  # noqa: N818 - it reads as what went wrong
    """More records of a dataset are bad than its user accepts."""


@dataclass(frozen=True, slots=True)
class BadRecord:
    """One bad record: where it lies, counted from 0 within its file, and what is wrong."""

    dataset: str
    file: str
    index: int
    reason: str


class BadRecordLog:
    """Collects what readers find, dataset by dataset."""

    def __init__(self) -> None:
        self.bad_records: list[BadRecord] = []
        self.num_good: Counter[str] = Counter()

    def add(self, dataset: str, file: Path | str, index: int, reason: str) -> None:
        """One record was bad."""
        self.bad_records.append(BadRecord(dataset, str(file), index, reason))

    def good(self, dataset: str, count: int = 1) -> None:
        """So many records were fine."""
        self.num_good[dataset] += count

    def shares(self) -> dict[str, float]:
        """The share of bad records of every dataset that has records, 0 to 1."""
        bad = Counter(bad_record.dataset for bad_record in self.bad_records)
        return {name: bad[name] / total for name, total in (self.num_good + bad).items()}

    def check(self, share_limit: float) -> None:
        """Log what was found. Raises TooManyBadRecords when more than this share of any dataset is bad."""
        for name, share in self.shares().items():
            if not share:
                continue
            found = [bad_record for bad_record in self.bad_records if bad_record.dataset == name]
            first = "; ".join(
                f"{bad_record.file}[{bad_record.index}]: {bad_record.reason}" for bad_record in found[:SHOWN]
            )
            total = len(found) + self.num_good[name]
            line = f"{name}: {len(found)} of {total} records are bad, such as {first}"
            if share > share_limit:
                raise TooManyBadRecords(f"{line} (allowed: a share of {share_limit:g})")
            logger.warning("%s", line)

    def save(self, path: Path) -> None:
        """Every bad_record, and the counts of every dataset, as JSON."""
        bad = Counter(bad_record.dataset for bad_record in self.bad_records)
        counts = {
            name: {"good": self.num_good[name], "bad": bad[name], "share": share}
            for name, share in self.shares().items()
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        listed = [asdict(bad_record) for bad_record in self.bad_records]
        path.write_text(json.dumps({"datasets": counts, "bad_records": listed}, indent=1) + "\n")
