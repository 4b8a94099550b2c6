"""The index of a dataset whose records and pictures were checked: opens in a moment, whatever its size.

A folder of these files, which `index_building` writes:

    index.json             what was indexed, how many records are good, and the hash of all; written last
    table.npy              one row of TABLE for each good record, read where it lies (memory-mapped)
    digests.npy            `picture_digest` of all pictures, in the order of the records
    piece_N.records        the records of one piece, as JSON
    piece_N.pictures       pictures that lie in no file of their own, as in parquet
"""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from training.data.bad_records import BadRecord
from training.data.datasets import DIGEST_BYTES, Dataset, SampleFacts
from training.data.samples import ImageRef, Message, Sample

INDEX = "index.json"
# Which record: its piece, where it lies there, lengths in tokens, its first picture among all and how many.
TABLE = np.dtype(
    [
        ("piece", "<u4"),
        ("offset", "<u8"),
        ("size", "<u4"),
        ("tokens", "<u4"),
        ("drawn_end", "<u4"),
        ("is_single_drawing", "u1"),
        ("num_pictures", "<u2"),
        ("first_picture", "<u8"),
    ]
)


def piece_path(folder: Path, number: int, suffix: str) -> Path:
    """A file about one piece."""
    return folder / f"piece_{number:05d}.{suffix}"


def packed_sample(sample: Sample, images: tuple[ImageRef, ...], root: Path) -> bytes:
    """A sample as JSON, with these references to its images; paths below `root` are relative to it."""
    refs = [[_relative(image.path, root), image.offset, image.length] for image in images]
    turns = [[message.role, message.content] for message in sample.messages]
    return json.dumps([sample.id, turns, refs, sample.meta], default=str).encode()


def _relative(path: Path, root: Path) -> str:
    return str(path.relative_to(root) if path.is_relative_to(root) else path.absolute())


class IndexedDataset(Dataset):
    """The good records of a dataset that was checked once.

    Args:
        root: Where relative paths start.
    """

    def __init__(self, folder: Path, root: Path) -> None:
        self.folder, self.root = folder, root
        self.content: Mapping[str, Any] = json.loads((folder / INDEX).read_text())
        self._table: np.ndarray = np.load(folder / "table.npy", mmap_mode="r")

    def __reduce__(self) -> tuple[Any, ...]:
        # To another process goes the address, not what is mapped.
        return IndexedDataset, (self.folder, self.root)

    @functools.cached_property
    def _digests(self) -> np.ndarray:
        return np.load(self.folder / "digests.npy", mmap_mode="r")

    @property
    def source(self) -> str:
        """The name of the dataset."""
        return self.content["name"]

    def text_sha256(self) -> str | None:
        """That of the processor that was at hand when the index was made."""
        return self.content["text_sha256"]

    def bad_records(self) -> list[BadRecord]:
        """All records that were left out."""
        return [BadRecord(self.source, *bad) for bad in self.content["bad"]]

    def __len__(self) -> int:
        return len(self._table)

    def sample(self, index: int) -> Sample:
        """Read one record."""
        row = self._table[index]
        with piece_path(self.folder, int(row["piece"]), "records").open("rb") as file:
            file.seek(int(row["offset"]))
            identity, turns, refs, meta = json.loads(file.read(int(row["size"])))
        images = tuple(ImageRef(self.root / path, offset, length) for path, offset, length in refs)
        return Sample(identity, tuple(Message(*turn) for turn in turns), images, self.source, meta)

    def sha256(self) -> str:
        """As it was computed when the index was made."""
        return self.content["sha256"]

    def facts(self, index: int) -> SampleFacts | None:
        """Lengths, where a processor was at hand when the index was made."""
        if self.text_sha256() is None:
            return None
        row = self._table[index]
        return SampleFacts(int(row["tokens"]), int(row["drawn_end"]), bool(row["is_single_drawing"]))

    def picture_digests(self, index: int) -> list[bytes]:
        """As they were computed when the index was made."""
        row = self._table[index]
        first = int(row["first_picture"])
        rows = self._digests[first : first + int(row["num_pictures"])]
        assert rows.shape[1:] == (DIGEST_BYTES,)
        return [digest.tobytes() for digest in rows]
