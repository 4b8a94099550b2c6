"""Training splits: of the embedded data by kind, and the mixture of datasets that a stage learns from."""

from collections.abc import Sequence
from pathlib import Path

from model.errors import UserError
from training.data.bad_records import BadRecordLog
from training.data.mixture import Mixture
from training.data.readers import open_dataset
from training.data.samples import Sample
from training.params import DatasetParams


def open_train_split(
    prepared: Path, kind: str, bad_records: BadRecordLog, verify_images: bool = True
) -> Sequence[Sample]:
    """The training conversations of one kind of prepared data. UserError when they have not been prepared."""
    path = prepared / kind / "train.json"
    if not path.is_file():
        raise UserError(f"no prepared data at {path}; make it with: vargpt data prepare")
    return open_dataset(kind, path, path.parent, bad_records, verify_images)


def open_mixture(
    datasets: Sequence[DatasetParams], root: Path, seed: int, bad_records: BadRecordLog
) -> Mixture:
    """The mixture of these datasets; relative paths start at `root`. UserError for data that is not there."""
    return Mixture([(_open(dataset, root, bad_records), dataset.weight) for dataset in datasets], seed)


def _open(dataset: DatasetParams, root: Path, bad_records: BadRecordLog) -> Sequence[Sample]:
    image_root = None if dataset.image_root is None else root / dataset.image_root
    try:
        return open_dataset(dataset.name, root / dataset.path, image_root, bad_records)
    except UserError as error:
        raise UserError(f"dataset {dataset.name!r}: {error} (data of digits: vargpt data prepare)") from None
