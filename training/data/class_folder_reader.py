"""Reader of images in one folder per class, as in ImageNet; an image becomes a request to draw its class."""

import json
import zlib
from functools import partial
from pathlib import Path

from model.errors import UserError
from training.data.bad_records import BadRecordLog
from training.data.class_prompts import REPLIES, REQUESTS, article
from training.data.record_parsing import UnparsedRecord, parse_records
from training.data.samples import ImageRef, Message, Sample, is_image

CLASS_NAMES = "classes.json"


def read_class_folder(
    source: str, folder: Path, bad_records: BadRecordLog, verify_images: bool = True
) -> list[Sample]:
    """Samples of all images, by class and file name; see `read_json`.

    `classes.json` in the folder ({folder: name}) names the classes; without it they are named as their
    folders.
    """
    names = _class_names(folder)
    paths = [path for name in sorted(names) for path in sorted((folder / name).iterdir()) if is_image(path)]
    unparsed = (
        UnparsedRecord(path, index, partial(_sample, source, path, names[path.parent.name]))
        for index, path in enumerate(paths)
    )
    return parse_records(source, unparsed, bad_records, verify_images)


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
