"""Reader of conversations in parquet files, with images inside, as LLaVA-OneVision is published."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from model.errors import UserError
from training.data.pieces import RECORDS_PER_PIECE, Piece
from training.data.record_parsing import UnparsedRecord, sample_from_record
from training.data.samples import ImageRef

IMAGE_COLUMNS = ("images", "image")
# Columns with a meaning of their own; all others become `meta`.
_CONVERSATION_COLUMNS = ("id", "conversations", "messages", "meta")


@dataclass(frozen=True, slots=True)
class ParquetImageRef(ImageRef):
    """Reference to an image in a parquet file: by row group, row of that group, and index in the row."""

    group: int = 0
    row: int = 0
    image: int = 0

    def read(self) -> bytes:
        """The encoded image."""
        cell = _as_list(_image_cells(self.path, self.group)[self.row].as_py())[self.image]
        return cell.get("bytes") if isinstance(cell, dict) else cell


@functools.lru_cache(maxsize=4)
def _image_cells(path: Path, group: int) -> pa.ChunkedArray:
    """The image column of a row group; cached, because a group is the least that can be read."""
    file = pq.ParquetFile(path)
    return file.read_row_group(group, columns=[_image_column(file)]).column(0)


def _image_column(file: pq.ParquetFile) -> str | None:
    return next((name for name in IMAGE_COLUMNS if name in file.schema_arrow.names), None)


def _as_list(cell: Any) -> list[Any]:
    return cell if isinstance(cell, list) else [] if cell is None else [cell]


@dataclass(frozen=True, slots=True)
class ParquetReader:
    """Rows of `id`, `image` and `conversations`, or `images` and `messages`; other columns become `meta`.

    An image is a struct of `bytes` and `path`, plain bytes, or a path below `image_root`.

    Args:
        source: The name of the dataset.
        image_root: Folder of relative image paths; the file's own if None.
    """

    source: str
    files: tuple[Path, ...]
    image_root: Path | None

    def pieces(self) -> Iterator[Piece]:
        """Some row groups each."""
        for path in self.files:
            with _damage_named(path):
                metadata = pq.ParquetFile(path).metadata
                sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
            first = start = count = 0
            for group, size in enumerate(sizes, start=1):
                count += size
                if count >= RECORDS_PER_PIECE or group == len(sizes):
                    yield Piece(path, start, group, first, count)
                    first, start, count = first + count, group, 0

    def records(self, piece: Piece) -> Iterator[UnparsedRecord]:
        """The rows of these groups."""
        path, index = piece.path, piece.first
        root = path.parent if self.image_root is None else self.image_root
        with _damage_named(path):
            file = pq.ParquetFile(path)
            image_column = _image_column(file)
            columns = [name for name in file.schema_arrow.names if name != image_column]
            for group in range(piece.start, piece.stop):
                cells = _image_cells(path, group) if image_column else None
                for row, record in enumerate(file.read_row_group(group, columns=columns).to_pylist()):
                    images = _as_list(cells[row].as_py()) if cells is not None else []
                    refs = tuple(_image_ref(cell, path, root, group, row, i) for i, cell in enumerate(images))
                    identity = f"{self.source}/{path.stem}/{index}"
                    parse = partial(sample_from_record, record, identity, self.source, refs, _meta(record))
                    yield UnparsedRecord(path, index, parse)
                    index += 1

    def sources(self) -> list[Path]:
        """The files."""
        return list(self.files)


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Raise UserError for what Arrow says of a damaged file."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        # Arrow reports a damaged file by an OSError too, but one without an error number.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UserError(f"{path} is not a readable parquet file: {error}") from None


def _meta(record: dict[str, Any]) -> dict[str, Any]:
    meta = {name: value for name, value in record.items() if name not in _CONVERSATION_COLUMNS}
    # A column of type map comes as pairs, which this operator takes as well.
    meta |= record.get("meta") or {}
    return meta


def _image_ref(image: Any, path: Path, root: Path, group: int, row: int, index: int) -> ImageRef:
    name = image
    if isinstance(image, dict):
        name = image.get("path") if image.get("bytes") is None else None
    if isinstance(name, str):
        return ImageRef(root / name)
    return ParquetImageRef(path, group=group, row=row, image=index)
