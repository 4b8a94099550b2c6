"""Reader of JSON and JSONL files of conversations: LLaVA's layout and ShareGPT's, which VARGPT uses to draw.

LLaVA: `id`, `image` (a path, several, or none), `conversations` of `from` and `value`. ShareGPT: `messages`
of `role` and `content`, `images` in the order of their placeholders.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from model.errors import UserError
from training.data.bad_records import BadRecordLog
from training.data.samples import ImageRef, Message, Sample, message_of

# Where a record lies (file and place in it, counted from 0), and what makes it a sample or raises ValueError.
Attempt = tuple[Path, int, Callable[[], Sample]]


def read_json(
    source: str, path: Path, image_root: Path | None, bad_records: BadRecordLog, verify_images: bool = True
) -> list[Sample]:
    """The good records of a file; the others go to `bad_records`.

    Args:
        source: The name of the dataset.
        image_root: Where relative image paths start; the file's own folder if not given.
        verify_images: Decode every picture now, so that a broken one is found before training.
    """
    root = path.parent if image_root is None else image_root
    attempts = (
        (path, index, partial(json_sample, record, f"{source}/{index}", source, root))
        for index, record in records(path)
    )
    return collect(source, attempts, bad_records, verify_images)


def collect(
    source: str, attempts: Iterable[Attempt], bad_records: BadRecordLog, verify_images: bool
) -> list[Sample]:
    """The samples of the attempts that succeed; the ValueErrors of the others go to `bad_records`."""
    samples = []
    for file, index, attempt in attempts:
        try:
            sample = attempt()
            if verify_images:
                for image in sample.images:
                    image.open()
        except ValueError as error:
            bad_records.add(source, file, index, str(error))
        else:
            samples.append(sample)
    bad_records.good(source, len(samples))
    return samples


def records(path: Path) -> Iterator[tuple[int, Any]]:
    """Records with their place in the file; a line of JSONL that is no JSON comes as the error it raised."""
    if path.suffix == ".jsonl":
        with path.open("rb") as lines:
            for index, line in enumerate(lines):
                if line.strip():
                    yield index, _parsed(line)
        return
    content = _parsed(path.read_bytes())
    if isinstance(content, ValueError):
        raise UserError(f"{path} is not JSON: {content}")
    if not isinstance(content, list):
        raise UserError(f"{path} must hold a list of records, got {type(content).__name__}")
    yield from enumerate(content)


def _parsed(text: bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        return error


def json_sample(record: Any, identity: str, source: str, root: Path) -> Sample:
    """A record of either layout. ValueError says what is wrong with it."""
    if isinstance(record, ValueError):
        raise UserError(f"not JSON: {record}")
    if not isinstance(record, dict):
        raise UserError(f"a record must be an object, got {type(record).__name__}")
    key = "images" if "messages" in record else "image"
    images = tuple(ImageRef(root / name) for name in _names(record.get(key), key))
    return sample_of(record, identity, source, images)


def _names(value: Any, key: str) -> Sequence[str]:
    """Paths of pictures: one, several, or none."""
    names = [] if value in (None, "") else value if isinstance(value, list) else [value]
    for name in names:
        if not isinstance(name, str) or not name or "\0" in name:
            raise UserError(f"{key} must name files, got {name!r}")
    return names


def sample_of(
    record: dict[str, Any], identity: str, source: str, images: tuple[ImageRef, ...], meta: Any = None
) -> Sample:
    """A sample from a record whose pictures are known; `meta` if given, else what the record says.

    Raises ValueError that says what is wrong.
    """
    meta = (record.get("meta") or {}) if meta is None else meta
    if not isinstance(meta, dict):
        raise UserError(f"meta must be an object, got {type(meta).__name__}")
    identity = identity if record.get("id") in (None, "") else str(record["id"])
    return Sample(identity, messages_of(record), images, source, meta)


def messages_of(record: dict[str, Any]) -> tuple[Message, ...]:
    """The turns of a record of either layout."""
    if "messages" in record:
        return _turns(record, "messages", "role", "content")
    if "conversations" not in record:
        raise UserError(f"neither messages nor conversations in a record of {sorted(record)}")
    turns = _turns(record, "conversations", "from", "value")
    # LLaVA's own training code starts at the first human turn too; ShareGPT's records often need it.
    return turns[1:] if turns and turns[0].role == "assistant" else turns


def _turns(record: dict[str, Any], key: str, role_key: str, content_key: str) -> tuple[Message, ...]:
    turns = record[key]
    if not isinstance(turns, list):
        raise UserError(f"{key} must be a list, got {type(turns).__name__}")
    return tuple(message_of(turn, role_key, content_key, index) for index, turn in enumerate(turns))
