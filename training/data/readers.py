"""Opens a dataset in any published layout: the reader is chosen by the suffix of its files."""

import re
from collections.abc import Sequence
from pathlib import Path

from model.errors import UserError
from training.data.bad_records import BadRecordLog
from training.data.class_folder_reader import CLASS_NAMES, ClassFolderReader
from training.data.json_reader import JsonReader
from training.data.parquet_reader import ParquetReader
from training.data.pieces import Reader
from training.data.record_parsing import parse_records
from training.data.samples import Sample
from training.data.tar_reader import TarReader

JSON_SUFFIXES = (".json", ".jsonl")
SPLITS = ("train", "validation", "val", "test")


def open_reader(name: str, path: Path, image_root: Path | None) -> Reader:
    """The reader of a dataset; nothing is read yet.

    Args:
        path: A JSON or JSONL file of `conversations` or `messages`; a parquet file or tar shard, a folder of
            them, or a pattern such as `train-*.tar`; a folder of class folders.
        image_root: Folder of relative image paths; that of the file if not given.

    Raises:
        UserError: the path is none of these.
    """
    files = tuple(_dataset_files(path))
    suffix = files[0].suffix if files else None
    if suffix in JSON_SUFFIXES and len(files) == 1:
        return JsonReader(name, files[0], files[0].parent if image_root is None else image_root)
    if suffix == ".parquet":
        return ParquetReader(name, files, image_root)
    if suffix == ".tar":
        return TarReader(name, files)
    if files:
        raise UserError(f"{path} is no layout that is read; name one of {_file_names(files)}")
    return ClassFolderReader(name, path)


def open_dataset(
    name: str, path: Path, image_root: Path | None, bad_records: BadRecordLog, verify_images: bool = True
) -> Sequence[Sample]:
    """Samples of a dataset, in the order of its files; records that cannot be parsed go to `bad_records`.

    All samples are in memory: this is for datasets of evaluation and of `tiny`.

    Args:
        path, image_root: As in `open_reader`.
        verify_images: Decode every image now, so that a broken one is found before it is needed.

    Raises:
        UserError: the path is no dataset, a file is damaged as a whole, or there are no records.
    """
    reader = open_reader(name, path, image_root)
    unparsed = (record for piece in reader.pieces() for record in reader.records(piece))
    samples = parse_records(name, unparsed, bad_records, verify_images)
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
