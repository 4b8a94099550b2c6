"""Opens a dataset in any published layout: the reader is chosen by the suffix of its files."""

import re
from collections.abc import Sequence
from pathlib import Path

from model.errors import UserError
from training.data.bad_records import BadRecordLog
from training.data.class_folder_reader import CLASS_NAMES, read_class_folder
from training.data.json_reader import read_json
from training.data.parquet_reader import read_parquet
from training.data.samples import Sample
from training.data.tar_reader import read_tar

JSON_SUFFIXES = (".json", ".jsonl")
SPLITS = ("train", "validation", "val", "test")


def open_dataset(
    name: str, path: Path, image_root: Path | None, bad_records: BadRecordLog, verify_images: bool = True
) -> Sequence[Sample]:
    """Samples of a dataset, in the order of its files; records that cannot be parsed go to `bad_records`.

    Args:
        path: A JSON or JSONL file of `conversations` or `messages`; a parquet file or tar shard, a folder of
            them, or a pattern such as `train-*.tar`; a folder of class folders.
        image_root: Folder of relative image paths; that of the file if not given.
        verify_images: Decode every image now, so that a broken one is found before training.

    Raises:
        ValueError: the path is none of these, a file is damaged as a whole, or there are no records.
    """
    files = _dataset_files(path)
    suffix = files[0].suffix if files else None
    if suffix in JSON_SUFFIXES and len(files) == 1:
        samples = read_json(name, files[0], image_root, bad_records, verify_images)
    elif suffix == ".parquet":
        samples = read_parquet(name, files, image_root, bad_records, verify_images)
    elif suffix == ".tar":
        samples = read_tar(name, files, bad_records, verify_images)
    elif not files:
        samples = read_class_folder(name, path, bad_records, verify_images)
    else:
        raise UserError(f"{path} is no layout that is read; name one of {_file_names(files)}")
    if not samples and name not in bad_records.bad_shares():
        raise UserError(f"{path} holds no records of the dataset {name!r}")
    return samples


def _dataset_files(path: Path) -> list[Path]:
    """The files of a dataset, sorted; none for a folder of class folders."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        if not (files := sorted(path.parent.glob(path.name))):
            raise UserError(f"{path} is neither a file nor a folder nor a pattern that files match")
        if len({file.suffix for file in files}) > 1:
            raise UserError(f"{path} matches files of several kinds: {_file_names(files)}")
        return files
    for suffixes in ((".parquet",), (".tar",), JSON_SUFFIXES):
        files = sorted(
            file for file in path.iterdir() if file.suffix in suffixes and file.name != CLASS_NAMES
        )
        if files:
            _refuse_several_splits(path, files)
            return files
    return []


def _refuse_several_splits(folder: Path, files: Sequence[Path]) -> None:
    """Raise UserError when a folder holds, for example, test shards beside training shards."""
    splits = {split for file in files for split in SPLITS if re.match(rf"{split}\b", file.name)}
    if len(splits) > 1:
        raise UserError(f"{folder} holds several splits, {sorted(splits)}; name one, as in {files[0].name}")


def _file_names(files: Sequence[Path]) -> str:
    names = [file.name for file in files]
    return ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")
