"""Readers of data that lies in many pieces: parquet of LLaVA-OneVision, tar shards, folders of classes."""

import functools
import json
import re
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from model.errors import UserError
from model.text_tokenizer import IMAGE
from training.data.bad_records import BadRecordLog
from training.data.class_prompts import REPLIES, REQUESTS, article
from training.data.readers_json import Attempt, collect, sample_of
from training.data.samples import ImageRef, Message, Sample

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
CLASS_NAMES = "classes.json"
# A picture with a caption and no conversation of its own is something to describe.
CAPTION_REQUEST = f"{IMAGE}\nDescribe the image."
# As WebDataset cuts a member's name: the key ends at the first point of the base name.
_MEMBER = re.compile(r"((?:.*/)?[^./]+)\.([^/]*)")
_CONVERSATION = ("id", "conversations", "messages", "meta")


@dataclass(frozen=True, slots=True)
class ParquetImageRef(ImageRef):
    """A picture inside a parquet file: a row of a row group, and which picture of that row."""

    group: int = 0
    row: int = 0
    place: int = 0

    def read(self) -> bytes:
        """The bytes in the cell."""
        cell = _in_list(_image_cells(self.path, self.group)[self.row].as_py())[self.place]
        return cell.get("bytes") if isinstance(cell, dict) else cell


@functools.lru_cache(maxsize=4)
def _image_cells(path: Path, group: int) -> pa.ChunkedArray:
    """The pictures of a row group; kept, because a group is the least that can be read."""
    file = pq.ParquetFile(path)
    return file.read_row_group(group, columns=[_image_column(file)]).column(0)


def _image_column(file: pq.ParquetFile) -> str | None:
    return next((name for name in ("images", "image") if name in file.schema_arrow.names), None)


def _in_list(cell: Any) -> list[Any]:
    return cell if isinstance(cell, list) else [] if cell is None else [cell]


def read_parquet(
    source: str,
    files: Sequence[Path],
    image_root: Path | None,
    bad_records: BadRecordLog,
    verify_images: bool = True,
) -> list[Sample]:
    """Rows of `id`, `image` and `conversations` (or `images` and `messages`); other columns become `meta`.

    An image is a struct of `bytes` and `path`, bare bytes, or a path below `image_root`.
    """
    attempts = (attempt for path in files for attempt in _row_attempts(source, path, image_root))
    return collect(source, attempts, bad_records, verify_images)


def _row_attempts(source: str, path: Path, image_root: Path | None) -> Iterator[Attempt]:
    try:
        file = pq.ParquetFile(path)
        image_column, index = _image_column(file), 0
        columns = [name for name in file.schema_arrow.names if name != image_column]
        for group in range(file.num_row_groups):
            cells = _image_cells(path, group) if image_column else None
            for row, record in enumerate(file.read_row_group(group, columns=columns).to_pylist()):
                pictures = _in_list(cells[row].as_py()) if cells is not None else []
                root = path.parent if image_root is None else image_root
                refs = [_cell_ref(picture, path, root, group, row, i) for i, picture in enumerate(pictures)]
                meta = {name: value for name, value in record.items() if name not in _CONVERSATION}
                meta |= record.get("meta") or {}
                identity = f"{source}/{path.stem}/{index}"
                yield path, index, partial(sample_of, record, identity, source, tuple(refs), meta)
                index += 1
    except (pa.ArrowException, OSError) as error:
        # Arrow tells of damage by an OSError without a number, too.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UserError(f"{path} is not a readable parquet file: {error}") from None


def _cell_ref(picture: Any, path: Path, root: Path, group: int, row: int, place: int) -> ImageRef:
    name = picture
    if isinstance(picture, dict):
        name = picture.get("path") if picture.get("bytes") is None else None
    if isinstance(name, str):
        return ImageRef(root / name)
    return ParquetImageRef(path, group=group, row=row, place=place)


def read_tar(
    source: str, files: Sequence[Path], bad_records: BadRecordLog, verify_images: bool = True
) -> list[Sample]:
    """WebDataset shards: members that share a key are one record, its pictures in the order they lie there.

    KEY.json holds a conversation of either JSON layout, or facts with a `caption`; KEY.txt is a caption too.
    Facts become `meta`.
    """
    attempts = (
        (path, index, partial(_shard_sample, source, path, key, members))
        for path in files
        for index, (key, members) in enumerate(_members(path))
    )
    return collect(source, attempts, bad_records, verify_images)


def _members(path: Path) -> Iterator[tuple[str, dict[str, ImageRef]]]:
    """Neighbouring members with one key, by the rest of their names. ValueError for a damaged archive."""
    last, members = "", {}
    try:
        with tarfile.open(path, "r:") as tar:
            for entry in tar:
                match = _MEMBER.fullmatch(entry.name)
                if not entry.isreg() or match is None:
                    continue
                if match[1] != last and members:
                    yield last, members
                    members = {}
                last = match[1]
                members[match[2].lower()] = ImageRef(path, entry.offset_data, entry.size)
            end = ImageRef(path, tar.offset, tarfile.BLOCKSIZE).read()
    except tarfile.TarError as error:
        raise UserError(f"{path} is not a readable tar shard: {error}") from None
    # The standard reader takes a damaged header for the end of the archive.
    if end != bytes(tarfile.BLOCKSIZE):
        raise UserError(f"{path} is damaged at byte {tar.offset}, after {last}")
    if members:
        yield last, members


def _shard_sample(source: str, path: Path, key: str, members: dict[str, ImageRef]) -> Sample:
    record = json.loads(members["json"].read()) if "json" in members else {}
    if not isinstance(record, dict):
        raise UserError(f"{key}.json must hold an object, got {type(record).__name__}")
    images = tuple(ref for name, ref in members.items() if f".{name}".endswith(IMAGE_SUFFIXES))
    identity = f"{source}/{path.stem}/{key}"
    if "messages" in record or "conversations" in record:
        return sample_of(record, identity, source, images)
    caption = members["txt"].read().decode() if "txt" in members else record.get("caption")
    if caption is None:
        raise UserError(f"{key} has neither a conversation nor a caption")
    messages = (Message("user", CAPTION_REQUEST), Message("assistant", caption))
    return Sample(identity, messages, images, source, record)


def read_class_folder(
    source: str, folder: Path, bad_records: BadRecordLog, verify_images: bool = True
) -> list[Sample]:
    """Pictures in one folder per class, each with a request to draw its class.

    A class is called as `classes.json` in the folder says ({folder: name}), else as its folder.
    """
    names = _class_names(folder)
    paths = [path for name in sorted(names) for path in sorted((folder / name).iterdir()) if is_image(path)]
    attempts = (
        (path, index, partial(_class_sample, source, path, names[path.parent.name]))
        for index, path in enumerate(paths)
    )
    return collect(source, attempts, bad_records, verify_images)


def is_image(path: Path) -> bool:
    """Whether a file's name says that it is a picture."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def _class_names(folder: Path) -> dict[str, str]:
    folders = [path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    listed = folder / CLASS_NAMES
    if not listed.is_file():
        return {name: name.replace("_", " ") for name in folders}
    try:
        names = json.loads(listed.read_bytes())
    except ValueError as error:
        raise UserError(f"{listed} is not JSON: {error}") from None
    if unnamed := sorted(name for name in folders if not isinstance(names.get(name), str)):
        raise UserError(f"{listed} does not name {unnamed[:3]}")
    return {name: names[name] for name in folders}


def _class_sample(source: str, path: Path, name: str) -> Sample:
    identity = f"{path.parent.name}/{path.name}"
    # The wording depends on the picture alone, so that it is the same in every run and epoch.
    reply, request = divmod(zlib.crc32(identity.encode()), len(REQUESTS))
    thing = f"{article(name)} {name}"
    messages = (
        Message("user", REQUESTS[request].format(thing)),
        Message("assistant", REPLIES[reply % len(REPLIES)].format(thing)),
    )
    return Sample(identity, messages, (ImageRef(path),), source, {"class": path.parent.name, "name": name})
