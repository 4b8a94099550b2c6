"""Reader of conversations in parquet files, with images inside, as LLaVA-OneVision is published."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from model.errors import UserError
from training.data.bad_records import BadRecordLog
from training.data.record_parsing import UnparsedRecord, parse_records, sample_from_record
from training.data.samples import ImageRef, Sample

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


def read_parquet(
    source: str,
    files: Sequence[Path],
    image_root: Path | None,
    bad_records: BadRecordLog,
    verify_images: bool = True,
) -> list[Sample]:
    """Samples from rows of `id`, `image` and `conversations`, or `images` and `messages`; see `read_json`.

    An image is a struct of `bytes` and `path`, plain bytes, or a path below `image_root` (default: the file's
    folder). All other columns become `meta`.
    """
    unparsed = (record for path in files for record in _unparsed_rows(source, path, image_root))
    return parse_records(source, unparsed, bad_records, verify_images)


def _unparsed_rows(source: str, path: Path, image_root: Path | None) -> Iterator[UnparsedRecord]:
    root = path.parent if image_root is None else image_root
    try:
        file = pq.ParquetFile(path)
        image_column, index = _image_column(file), 0
        columns = [name for name in file.schema_arrow.names if name != image_column]
        for group in range(file.num_row_groups):
            cells = _image_cells(path, group) if image_column else None
            for row, record in enumerate(file.read_row_group(group, columns=columns).to_pylist()):
                images = _as_list(cells[row].as_py()) if cells is not None else []
                refs = tuple(_image_ref(image, path, root, group, row, i) for i, image in enumerate(images))
                parse = partial(
                    sample_from_record, record, f"{source}/{path.stem}/{index}", source, refs, _meta(record)
                )
                yield UnparsedRecord(path, index, parse)
                index += 1
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
