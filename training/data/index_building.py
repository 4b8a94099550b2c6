"""Checks every record and picture of a dataset once, by several processes, and writes its index.

Pieces are checked independently: a killed run goes on with those that are not there yet.
"""

import hashlib
import json
import multiprocessing
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from model.errors import UserError
from model.processing import VargptProcessor
from training.data.dataset_index import INDEX, TABLE, IndexedDataset, packed_sample, piece_path
from training.data.datasets import DIGEST_BYTES, picture_digest
from training.data.pieces import Piece, Reader
from training.data.record_parsing import UnparsedRecord
from training.data.sample_facts import is_single_drawing, sample_facts, text_sha256
from training.data.samples import ImageRef, Sample
from training.parent_death import die_with_parent
from training.tracking.progress import progress_line

FORMAT = 1
STARTED = "started.json"


@dataclass(frozen=True)
class PieceChecker:
    """Checks pieces of one dataset and writes their part of the index. Can be sent to another process.

    Args:
        folder: Of the index.
        root: Where relative paths start.
        processor: By which lengths are counted; None if it is not known yet.
    """

    name: str
    reader: Reader
    folder: Path
    root: Path
    processor: VargptProcessor | None

    def check(self, number: int, piece: Piece) -> int:
        """Check all records of a piece; how many there were."""
        rows, digests, bad, digest = [], [], [], hashlib.sha256()
        with (
            _written_whole(piece_path(self.folder, number, "records")) as records,
            _written_whole(piece_path(self.folder, number, "pictures")) as pictures,
        ):
            writer = _PictureWriter(pictures.file, pictures.path)
            for record in self.reader.records(piece):
                try:
                    sample, contents = _checked(record)
                except ValueError as error:
                    bad.append([str(record.file), record.index, str(error)])
                    continue
                refs = tuple(map(writer.reference, sample.images, contents))
                packed = packed_sample(sample, refs, self.root)
                found = [picture_digest(content) for content in contents]
                lengths = self._lengths(sample)
                rows.append((number, records.file.tell(), len(packed), *lengths, len(found), len(digests)))
                digests += found
                records.file.write(packed)
                facts = [sample.id, sample.source, sample.conversation(), sample.meta]
                digest.update(json.dumps(facts, sort_keys=True, default=str).encode() + b"".join(found))
        np.save(piece_path(self.folder, number, "table.npy"), np.array(rows, TABLE))
        all_digests = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, DIGEST_BYTES)
        np.save(piece_path(self.folder, number, "digests.npy"), all_digests)
        done = {"good": len(rows), "bad": bad, "sha256": digest.hexdigest()}
        _write_json(piece_path(self.folder, number, "json"), done)
        return len(rows) + len(bad)

    def _lengths(self, sample: Sample) -> tuple[int, int, bool]:
        if self.processor is None:
            return 0, 0, is_single_drawing(sample)
        facts = sample_facts(sample, self.processor)
        return facts.tokens, facts.drawn_end, facts.is_single_drawing


def _checked(record: UnparsedRecord) -> tuple[Sample, list[bytes]]:
    """A sample, and its pictures as they are encoded. ValueError says what is wrong with it."""
    sample = record.parse()
    contents = [image.content() for image in sample.images]
    for image, content in zip(sample.images, contents, strict=True):
        image.decode(content)
    return sample, contents


class _PictureWriter:
    """Gives pictures that only their reader finds a place in a file of the index."""

    def __init__(self, file: Any, path: Path) -> None:
        self._file, self._path = file, path

    def reference(self, image: ImageRef, content: bytes) -> ImageRef:
        if type(image) is ImageRef:
            return image
        offset = self._file.tell()
        self._file.write(content)
        return ImageRef(self._path, offset, len(content))


@dataclass(frozen=True)
class _NewFile:
    file: Any
    path: Path


@contextmanager
def _written_whole(path: Path) -> Iterator[_NewFile]:
    """A file that is there when it is whole; an empty one is left out."""
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with beside.open("wb") as file:
        yield _NewFile(file, path)
        size = file.tell()
    if size:
        os.replace(beside, path)
    else:
        beside.unlink()


def _write_json(path: Path, content: Any) -> None:
    with _written_whole(path) as new:
        new.file.write((json.dumps(content) + "\n").encode())


def build_index(checker: PieceChecker, workers: int) -> IndexedDataset:
    """Check a dataset that has not been checked yet or has changed since, and write its index.

    Args:
        workers: Processes; 0 for one on each core.

    Raises:
        UserError: a file is damaged as a whole, or there are no good records.
    """
    key = _key(checker)
    if is_fresh(checker.folder, key):
        return IndexedDataset(checker.folder, checker.root)
    _start(checker.folder, key)
    pieces = list(checker.reader.pieces())
    _check_all(checker, pieces, workers or len(os.sched_getaffinity(0)))
    _join(checker, len(pieces), key)
    return IndexedDataset(checker.folder, checker.root)


def is_fresh(folder: Path, key: dict[str, Any]) -> bool:
    """Whether a folder holds the finished index of just this."""
    path = folder / INDEX
    return path.is_file() and json.loads(path.read_text())["key"] == key


def _key(checker: PieceChecker) -> dict[str, Any]:
    """What an index is of: it is made anew when one of these is another."""
    return {
        "format": FORMAT,
        "name": checker.name,
        "sources": source_states(checker.reader),
        "text_sha256": None if checker.processor is None else text_sha256(checker.processor),
    }


def source_states(reader: Reader) -> list[list[Any]]:
    """Path, size and time of the last change of all files that decide which records there are."""
    states = [(path, path.stat()) for path in reader.sources()]
    return [[str(path), state.st_size, state.st_mtime_ns] for path, state in states]


def has_changed(index: IndexedDataset, reader: Reader) -> bool:
    """Whether files of a dataset are others than when it was checked; pictures are not looked at again."""
    key = index.content["key"]
    return key["format"] != FORMAT or key["sources"] != source_states(reader)


def _start(folder: Path, key: dict[str, Any]) -> None:
    """Make the folder, or leave one in which the same was begun as it is."""
    begun = folder / STARTED
    if begun.is_file() and json.loads(begun.read_text()) == key:
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    _write_json(begun, key)


def _check_all(checker: PieceChecker, pieces: list[Piece], workers: int) -> None:
    left, num_done = [], 0
    for number, piece in enumerate(pieces):
        done = piece_path(checker.folder, number, "json")
        if done.is_file():
            counts = json.loads(done.read_text())
            num_done += counts["good"] + len(counts["bad"])
        else:
            left.append((number, piece))
    counts = [piece.count for piece in pieces]
    total = None if None in counts else sum(count or 0 for count in counts)
    with progress_line(f"check {checker.name}", num_done, total, unit="records") as line:
        for count in _results(checker, left, workers):
            num_done += count
            line.show(num_done, {})


def _results(checker: PieceChecker, left: list[tuple[int, Piece]], workers: int) -> Iterator[int]:
    if workers == 1 or len(left) <= 1:
        yield from (checker.check(number, piece) for number, piece in left)
        return
    with ProcessPoolExecutor(
        min(workers, len(left)),
        # A fork would copy locks that threads hold.
        multiprocessing.get_context("spawn"),
        die_with_parent,
        (os.getpid(),),
    ) as pool:
        futures = [pool.submit(checker.check, number, piece) for number, piece in left]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _join(checker: PieceChecker, num_pieces: int, key: dict[str, Any]) -> None:
    """Put the tables of all pieces together."""
    folder = checker.folder
    parts = [json.loads(piece_path(folder, number, "json").read_text()) for number in range(num_pieces)]
    if not any(part["good"] for part in parts):
        reasons = "; ".join(f"{bad[0]}[{bad[1]}]: {bad[2]}" for part in parts for bad in part["bad"][:3])
        raise UserError(f"the dataset {checker.name!r} holds no good records. {reasons}".strip())
    tables = [np.load(piece_path(folder, number, "table.npy")) for number in range(num_pieces)]
    digests = [np.load(piece_path(folder, number, "digests.npy")) for number in range(num_pieces)]
    first = 0
    for table, some in zip(tables, digests, strict=True):
        table["first_picture"] += first
        first += len(some)
    np.save(folder / "table.npy", np.concatenate(tables))
    np.save(folder / "digests.npy", np.concatenate(digests))
    content = {
        "key": key,
        "name": checker.name,
        "text_sha256": key["text_sha256"],
        "sha256": hashlib.sha256("".join(part["sha256"] for part in parts).encode()).hexdigest(),
        "bad": [bad for part in parts for bad in part["bad"]],
    }
    _write_json(folder / INDEX, content)
    for number in range(num_pieces):
        for suffix in ("table.npy", "digests.npy", "json"):
            piece_path(folder, number, suffix).unlink()
    for left_by_killed in folder.glob("*.tmp"):
        left_by_killed.unlink()
