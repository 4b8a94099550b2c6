"""Training splits of the embedded data, and the mixture of datasets that a stage learns from."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from model.errors import UserError
from model.processing import VargptProcessor
from training.data.bad_records import BadRecordLog
from training.data.dataset_index import INDEX, IndexedDataset
from training.data.datasets import Dataset, as_dataset, split_held_out
from training.data.index_building import PieceChecker, build_index, has_changed
from training.data.mixture import Mixture
from training.data.readers import open_dataset, open_reader
from training.data.samples import Sample
from training.params import DatasetParams

HASH_LENGTH = 8


def open_train_split(
    prepared: Path, kind: str, bad_records: BadRecordLog, verify_images: bool = True
) -> Sequence[Sample]:
    """The training conversations of one kind of prepared data. UserError when they have not been prepared."""
    path = prepared / kind / "train.json"
    if not path.is_file():
        raise UserError(f"no prepared data at {path}; make it with: vargpt data prepare")
    return open_dataset(kind, path, path.parent, bad_records, verify_images)


@dataclass(frozen=True)
class DataFolders:
    """Where datasets and what is known of them lie.

    Args:
        root: Where relative paths of datasets start.
        index: Indices of datasets that were checked.
    """

    root: Path
    index: Path

    def index_of(self, dataset: DatasetParams) -> Path:
        """The folder of the index of a dataset."""
        name = re.sub(r"[^\w.-]", "_", dataset.name)
        place = hashlib.sha256(f"{dataset.path}\n{dataset.image_root}".encode()).hexdigest()
        return self.index / f"{name}-{place[:HASH_LENGTH]}"

    def place(self, dataset: DatasetParams) -> tuple[Path, Path | None]:
        """Path and image root of a dataset."""
        return (
            self.root / dataset.path,
            None if dataset.image_root is None else self.root / dataset.image_root,
        )


def index_datasets(
    datasets: Iterable[DatasetParams],
    folders: DataFolders,
    processor: VargptProcessor | None,
    workers: int,
    bad_record_share: float,
) -> dict[str, IndexedDataset]:
    """Check datasets that have not been checked yet, each once; their indices by name.

    Raises:
        UserError: data that is not there, or too many bad records.
    """
    indexed: dict[str, IndexedDataset] = {}
    done: set[Path] = set()
    for dataset in datasets:
        folder = folders.index_of(dataset)
        if folder in done:
            continue
        done.add(folder)
        reader = open_reader(dataset.name, *folders.place(dataset))
        checker = PieceChecker(dataset.name, reader, folder, folders.root, processor)
        found = build_index(checker, workers)
        log = BadRecordLog()
        _add_counts(found, log)
        log.check(bad_record_share)
        indexed[folder.name] = found
    return indexed


def open_mixture(
    datasets: Sequence[DatasetParams],
    folders: DataFolders,
    held_out: float,
    seed: int,
    bad_records: BadRecordLog,
) -> Mixture:
    """The mixture of these datasets, with what is held out of it; bad records go to `bad_records`.

    A dataset without an index is read and checked as a whole, now.

    Args:
        held_out: Share of every dataset that is never trained on.

    Raises:
        UserError: data that is not there, or has changed since it was checked.
    """
    parts, held = [], []
    for dataset in datasets:
        training, some = split_held_out(_open(dataset, folders, bad_records), held_out)
        parts.append((training, dataset.weight))
        if some is not None:
            held.append((some, dataset.weight))
    return Mixture(parts, seed, Mixture(held, seed=0) if held else None)


def _open(dataset: DatasetParams, folders: DataFolders, bad_records: BadRecordLog) -> Dataset:
    path, image_root = folders.place(dataset)
    folder = folders.index_of(dataset)
    try:
        if (folder / INDEX).is_file():
            found = IndexedDataset(folder, folders.root)
            if has_changed(found, open_reader(dataset.name, path, image_root)):
                raise UserError(f"{path} has changed since it was checked; run: vargpt data prepare")
            _add_counts(found, bad_records)
            return found
        return as_dataset(open_dataset(dataset.name, path, image_root, bad_records))
    except UserError as error:
        raise UserError(f"dataset {dataset.name!r}: {error} (data of digits: vargpt data prepare)") from None


def _add_counts(dataset: IndexedDataset, bad_records: BadRecordLog) -> None:
    bad_records.records += dataset.bad_records()
    bad_records.add_good(dataset.source, len(dataset))
