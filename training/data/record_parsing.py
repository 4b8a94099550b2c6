"""From a record to a Sample, for all readers; a record that cannot be parsed is logged as bad.

A reader lists the records of its files as UnparsedRecords and hands them to `parse_records`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.errors import UserError
from training.data.bad_records import BadRecordLog
from training.data.samples import ROLES, ImageRef, Message, Sample


@dataclass(frozen=True, slots=True)
class UnparsedRecord:
    """A record of a dataset file, and the function that makes it a sample.

    Args:
        index: Of the record in its file, counted from 0.
        parse: Raises ValueError that says what is wrong with the record.
    """

    file: Path
    index: int
    parse: Callable[[], Sample]


def parse_records(
    source: str, unparsed: Iterable[UnparsedRecord], bad_records: BadRecordLog, verify_images: bool
) -> list[Sample]:
    """Samples of all records that can be parsed, in order; the others go to `bad_records`.

    Args:
        source: The name of the dataset.
        verify_images: Decode every image now, so that a broken one is found before training.
    """
    samples = []
    for record in unparsed:
        try:
            sample = record.parse()
            if verify_images:
                for image in sample.images:
                    image.open()
        except ValueError as error:
            bad_records.add(source, record.file, record.index, str(error))
        else:
            samples.append(sample)
    bad_records.add_good(source, len(samples))
    return samples


def sample_from_record(
    record: dict[str, Any], default_id: str, source: str, images: tuple[ImageRef, ...], meta: Any = None
) -> Sample:
    """A sample from a record in LLaVA's or ShareGPT's layout, and references to its images.

    Args:
        default_id: For a record without an `id`.
        meta: In place of the record's own `meta`, if given.

    Raises:
        ValueError: says what is wrong with the record.
    """
    meta = (record.get("meta") or {}) if meta is None else meta
    if not isinstance(meta, dict):
        raise UserError(f"meta must be an object, got {type(meta).__name__}")
    identity = default_id if record.get("id") in (None, "") else str(record["id"])
    return Sample(identity, _messages(record), images, source, meta)


def _messages(record: dict[str, Any]) -> tuple[Message, ...]:
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
    return tuple(_message(turn, role_key, content_key, index) for index, turn in enumerate(turns))


def _message(turn: Any, role_key: str, content_key: str, index: int) -> Message:
    if not isinstance(turn, dict):
        raise UserError(f"turn {index} must be an object, got {type(turn).__name__}")
    if missing := {role_key, content_key} - turn.keys():
        raise UserError(f"turn {index} lacks {sorted(missing)}")
    role = turn[role_key]
    return Message(ROLES.get(role, role) if isinstance(role, str) else repr(role), turn[content_key])
