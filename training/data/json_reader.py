"""Reader of conversations in JSON and JSONL files, in LLaVA's layout and in ShareGPT's, which VARGPT uses.

LLaVA: `id`, `image` (a path, a list of paths, or absent), `conversations` of `from` and `value`. ShareGPT:
`messages` of `role` and `content`, `images` in the order of their placeholders.
"""

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from model.errors import UserError
from training.data.bad_records import BadRecordLog
from training.data.record_parsing import UnparsedRecord, parse_records, sample_from_record
from training.data.samples import ImageRef, Sample


def read_json(
    source: str, path: Path, image_root: Path | None, bad_records: BadRecordLog, verify_images: bool = True
) -> list[Sample]:
    """Samples of a file, in order; records that cannot be parsed go to `bad_records`.

    Args:
        source: The name of the dataset.
        image_root: Folder of relative image paths; the file's own folder if not given.
        verify_images: Decode every image now, so that a broken one is found before training.
    """
    root = path.parent if image_root is None else image_root
    unparsed = (
        UnparsedRecord(path, index, partial(_sample, record, f"{source}/{index}", source, root))
        for index, record in _indexed_records(path)
    )
    return parse_records(source, unparsed, bad_records, verify_images)


def _indexed_records(path: Path) -> Iterator[tuple[int, Any]]:
    """Records with their index in the file; for a JSONL line that is not JSON, the error it raised."""
    if path.suffix == ".jsonl":
        with path.open("rb") as lines:
            for index, line in enumerate(lines):
                if line.strip():
                    yield index, _json_or_error(line)
        return
    content = _json_or_error(path.read_bytes())
    if isinstance(content, ValueError):
        raise UserError(f"{path} is not JSON: {content}")
    if not isinstance(content, list):
        raise UserError(f"{path} must hold a list of records, got {type(content).__name__}")
    yield from enumerate(content)


def _json_or_error(text: bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        return error


def _sample(record: Any, default_id: str, source: str, root: Path) -> Sample:
    if isinstance(record, ValueError):
        raise UserError(f"not JSON: {record}")
    if not isinstance(record, dict):
        raise UserError(f"a record must be an object, got {type(record).__name__}")
    key = "images" if "messages" in record else "image"
    images = tuple(ImageRef(root / name) for name in _image_paths(record.get(key), key))
    return sample_from_record(record, default_id, source, images)


def _image_paths(value: Any, key: str) -> Sequence[str]:
    names = [] if value in (None, "") else value if isinstance(value, list) else [value]
    for name in names:
        if not isinstance(name, str) or not name or "\0" in name:
            raise UserError(f"{key} must name files, got {name!r}")
    return names
