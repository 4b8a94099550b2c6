"""Reader of conversations in JSON and JSONL files, in LLaVA's layout and in ShareGPT's, which VARGPT uses.

LLaVA: `id`, `image` (a path, a list of paths, or absent), `conversations` of `from` and `value`. ShareGPT:
`messages` of `role` and `content`, `images` in the order of their placeholders.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from model.errors import UserError
from training.data.json_parsing import parse_json
from training.data.json_spans import Span, line_spans, list_spans
from training.data.pieces import RECORDS_PER_PIECE, Piece
from training.data.record_parsing import UnparsedRecord, sample_from_record
from training.data.samples import ImageRef, Sample


@dataclass(frozen=True, slots=True)
class JsonReader:
    """Records of one file: a list in a JSON file, or the lines of a JSONL file.

    Args:
        source: The name of the dataset.
        image_root: Folder of relative image paths.
    """

    source: str
    path: Path
    image_root: Path

    def pieces(self) -> Iterator[Piece]:
        """Stretches of the file. UserError when it is no JSON, or no list."""
        spans = self._spans(0, self.path.stat().st_size)
        while some := list(islice(spans, RECORDS_PER_PIECE)):
            count = some[-1].index - some[0].index + 1
            yield Piece(self.path, some[0].start, some[-1].stop, some[0].index, count)

    def records(self, piece: Piece) -> Iterator[UnparsedRecord]:
        """The records of one stretch."""
        with self.path.open("rb") as file:
            for span in self._spans(piece.start, piece.stop, piece.first):
                file.seek(span.start)
                record = _json_or_error(file.read(span.stop - span.start))
                parse = partial(_sample, record, f"{self.source}/{span.index}", self.source, self.image_root)
                yield UnparsedRecord(self.path, span.index, parse)

    def sources(self) -> list[Path]:
        """The file."""
        return [self.path]

    def _spans(self, start: int, stop: int, first: int = 0) -> Iterator[Span]:
        find = line_spans if self.path.suffix == ".jsonl" else list_spans
        return find(self.path, start, stop, first)


def _json_or_error(text: bytes) -> Any:
    try:
        return parse_json(text)
    except UserError as error:
        return error


def _sample(record: Any, default_id: str, source: str, root: Path) -> Sample:
    if isinstance(record, UserError):
        raise record
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
