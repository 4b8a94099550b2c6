"""Reader of images in one folder per class, as in ImageNet; an image becomes a request to draw its class."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from model.errors import UserError
from training.data.class_prompts import REPLIES, REQUESTS, article
from training.data.json_parsing import parse_json
from training.data.pieces import RECORDS_PER_PIECE, Piece
from training.data.record_parsing import UnparsedRecord
from training.data.samples import ImageRef, Message, Sample, is_image

CLASS_NAMES = "classes.json"


@dataclass(frozen=True, slots=True)
class ClassFolderReader:
    """All images, by class and file name.

    `classes.json` in the folder ({folder: name}) names the classes; without it they are named as their
    folders.

    Args:
        source: The name of the dataset.
    """

    source: str
    folder: Path

    def pieces(self) -> Iterator[Piece]:
        """Some images of one class each."""
        first = 0
        for name in sorted(_class_names(self.folder)):
            count = len(_images(self.folder / name))
            for start in range(0, count, RECORDS_PER_PIECE):
                stop = min(start + RECORDS_PER_PIECE, count)
                yield Piece(self.folder / name, start, stop, first + start, stop - start)
            first += count

    def records(self, piece: Piece) -> Iterator[UnparsedRecord]:
        """These images of one class."""
        class_name = _class_names(self.folder)[piece.path.name]
        for index, path in enumerate(_images(piece.path)[piece.start : piece.stop], start=piece.first):
            yield UnparsedRecord(path, index, partial(_sample, self.source, path, class_name))

    def sources(self) -> list[Path]:
        """The class folders, and the file that names classes."""
        folders = [self.folder / name for name in sorted(_class_names(self.folder))]
        listed = self.folder / CLASS_NAMES
        return [*folders, listed] if listed.is_file() else folders


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if is_image(path))


def _class_names(folder: Path) -> dict[str, str]:
    folders = [path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    listed = folder / CLASS_NAMES
    if not listed.is_file():
        return {name: name.replace("_", " ") for name in folders}
    try:
        names = parse_json(listed.read_bytes())
    except UserError as error:
        raise UserError(f"{listed} is {error}") from None
    if not isinstance(names, dict):
        raise UserError(f"{listed} must hold an object, got {type(names).__name__}")
    if unnamed := sorted(name for name in folders if not isinstance(names.get(name), str)):
        raise UserError(f"{listed} does not name {unnamed[:3]}")
    return {name: names[name] for name in folders}


def _sample(source: str, path: Path, class_name: str) -> Sample:
    identity = f"{path.parent.name}/{path.name}"
    # The wording depends on the file name alone, so that it is the same in every run and epoch.
    reply, request = divmod(zlib.crc32(identity.encode()), len(REQUESTS))
    thing = f"{article(class_name)} {class_name}"
    messages = (
        Message("user", REQUESTS[request].format(thing)),
        Message("assistant", REPLIES[reply % len(REPLIES)].format(thing)),
    )
    meta = {"class": path.parent.name, "name": class_name}
    return Sample(identity, messages, (ImageRef(path),), source, meta)
