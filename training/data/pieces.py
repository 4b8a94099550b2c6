"""A dataset as pieces that are read one by one, by one process or many, whatever its layout.

A reader cuts its files into pieces without reading the records in them, and lists the records of one piece.
So a dataset of millions of records is never in memory as a whole.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from training.data.record_parsing import UnparsedRecord

# About ten seconds of decoding pictures: what a killed process loses at most.
RECORDS_PER_PIECE = 2000


@dataclass(frozen=True, slots=True)
class Piece:
    """Neighbouring records of one file, or of one class folder.

    Args:
        start, stop: Where they lie: bytes of JSON, row groups of parquet, images of a class; a tar shard is
            one piece, from 0 to 1.
        first: Index of the first record in its file, counted from 0.
        count: How many records there are; None if only reading them would tell.
    """

    path: Path
    start: int
    stop: int
    first: int = 0
    count: int | None = None


class Reader(Protocol):
    """A dataset in one layout. Can be sent to another process."""

    def pieces(self) -> Iterator[Piece]:
        """All pieces, in the order of the dataset. UserError for files that are damaged as a whole."""

    def records(self, piece: Piece) -> Iterator[UnparsedRecord]:
        """The records of one piece, in order. UserError for a file that is damaged as a whole."""

    def sources(self) -> list[Path]:
        """The files, or class folders, that decide which records there are."""
