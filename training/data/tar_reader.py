"""Reader of tar shards in WebDataset's layout: members whose names share a key are one record."""

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from model.errors import UserError
from model.text_tokenizer import IMAGE
from training.data.json_parsing import parse_json
from training.data.pieces import Piece
from training.data.record_parsing import UnparsedRecord, sample_from_record
from training.data.samples import ImageRef, Message, Sample, is_image

# An image with a caption and no conversation of its own becomes a request to describe it.
CAPTION_REQUEST = f"{IMAGE}\nDescribe the image."
# WebDataset's rule: the key ends at the first point of the base name.
_MEMBER_NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]*)")


@dataclass(frozen=True, slots=True)
class TarReader:
    """Samples of shards, images in the order of the archive.

    KEY.json holds a conversation of either JSON layout, or attributes with a `caption`; KEY.txt is a caption,
    too. Attributes become `meta`.

    Args:
        source: The name of the dataset.
    """

    source: str
    files: tuple[Path, ...]

    def pieces(self) -> Iterator[Piece]:
        """One shard each."""
        return (Piece(path, 0, 1) for path in self.files)

    def records(self, piece: Piece) -> Iterator[UnparsedRecord]:
        """The records of one shard."""
        for index, (key, members) in enumerate(_members_by_key(piece.path)):
            parse = partial(_sample, self.source, piece.path, key, members)
            yield UnparsedRecord(piece.path, index, parse)

    def sources(self) -> list[Path]:
        """The shards."""
        return list(self.files)


def _members_by_key(path: Path) -> Iterator[tuple[str, dict[str, ImageRef]]]:
    """Key and members, by suffix, of each run of members with one key. ValueError for a damaged archive."""
    last, members = "", {}
    try:
        with tarfile.open(path, "r:") as tar:
            for entry in tar:
                match = _MEMBER_NAME.fullmatch(entry.name)
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


def _sample(source: str, path: Path, key: str, members: dict[str, ImageRef]) -> Sample:
    record = parse_json(members["json"].read()) if "json" in members else {}
    if not isinstance(record, dict):
        raise UserError(f"{key}.json must hold an object, got {type(record).__name__}")
    images = tuple(ref for suffix, ref in members.items() if is_image(Path(f"{key}.{suffix}")))
    identity = f"{source}/{path.stem}/{key}"
    if "messages" in record or "conversations" in record:
        return sample_from_record(record, identity, source, images)
    caption = members["txt"].read().decode() if "txt" in members else record.get("caption")
    if caption is None:
        raise UserError(f"{key} has neither a conversation nor a caption")
    if not isinstance(caption, str):
        raise UserError(f"the caption of {key} must be text, got {type(caption).__name__}")
    messages = (Message("user", CAPTION_REQUEST), Message("assistant", caption))
    return Sample(identity, messages, images, source, record)
