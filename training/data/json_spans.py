"""Where each record lies in a JSON or JSONL file, found in one pass with little memory."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from model.errors import UserError
from training.data.json_parsing import parse_json

CHUNK_BYTES = 1 << 20
BYTE_ORDER_MARK = "\xef\xbb\xbf"
_WHITESPACE = " \t\n\r"
ENDS_VALUE = frozenset(",]" + _WHITESPACE)
_DECODER = json.JSONDecoder()


class Span(NamedTuple):
    """One record: its index in the file, counted from 0, and its bytes from `start` to `stop`."""

    index: int
    start: int
    stop: int


def line_spans(path: Path, start: int, stop: int, first: int) -> Iterator[Span]:
    """Lines that are not blank, between two bytes of a file; the first line there has the index `first`."""
    with path.open("rb") as file:
        file.seek(start)
        index = first
        while start < stop and (line := file.readline()):
            if line.strip():
                yield Span(index, start, start + len(line))
            start, index = start + len(line), index + 1


def list_spans(path: Path, start: int, stop: int, first: int) -> Iterator[Span]:
    """The elements of the list that a JSON file holds, or of a stretch of it from byte `start` to `stop`.

    UserError when the file is no JSON, or no list.
    """
    with path.open("rb") as file:
        text = _Text(path, file, start, stop)
        is_whole = start == 0
        if is_whole:
            _enter_list(text)
            if text.next_letter() == "]":
                text.skip(1)
                _refuse_more(text)
                return
        for index in _count_from(first):
            began = text.byte
            text.skip_value()
            yield Span(index, began, text.byte)
            letter = text.next_letter()
            if letter == "" and not is_whole:
                return
            if letter == "]":
                text.skip(1)
                _refuse_more(text)
                return
            if letter != ",":
                raise text.error("a comma is missing")
            text.skip(1)
            text.next_letter()


def _count_from(first: int) -> Iterator[int]:
    while True:
        yield first
        first += 1


def _enter_list(text: "_Text") -> None:
    if text.begins_with(BYTE_ORDER_MARK):
        text.skip(len(BYTE_ORDER_MARK))
    if text.next_letter() == "[":
        text.skip(1)
        return
    try:
        content = parse_json(text.path.read_bytes())
    except UserError as error:
        raise UserError(f"{text.path} is {error}") from None
    raise UserError(f"{text.path} must hold a list of records, got {type(content).__name__}")


def _refuse_more(text: "_Text") -> None:
    if text.next_letter():
        raise text.error("there is more after the list")


class _Text:
    """A stretch of a file as text, read in chunks; what was skipped is forgotten.

    Every byte is one letter (Latin-1), so positions are bytes. Letters beyond ASCII stand only inside of
    strings, whose ends are found all the same.
    """

    def __init__(self, path: Path, file: BinaryIO, start: int, stop: int) -> None:
        self.path, self._file = path, file
        self.byte, self._left = start, stop - start
        self._buffer, self._at = "", 0
        file.seek(start)

    def next_letter(self) -> str:
        """Skip white space; the letter there, not skipped, or "" at the end."""
        while True:
            while self._at < len(self._buffer) and self._buffer[self._at] in _WHITESPACE:
                self.skip(1)
            if self._at < len(self._buffer):
                return self._buffer[self._at]
            if not self._read_more(CHUNK_BYTES):
                return ""

    def begins_with(self, letters: str) -> bool:
        """Whether these letters come next."""
        self._read_more(len(letters))
        return self._buffer.startswith(letters, self._at)

    def skip(self, count: int) -> None:
        """Go on by some letters."""
        self._at += count
        self.byte += count

    def skip_value(self) -> None:
        """Go on behind the JSON value that begins here. UserError when there is none."""
        size = CHUNK_BYTES
        while True:
            try:
                _, end = _DECODER.raw_decode(self._buffer, self._at)
            except RecursionError:
                raise self.error("nested too deeply") from None
            except json.JSONDecodeError as error:
                fault = error.msg
            else:
                length = end - self._at
                # A number may go on: 3.5e is read as 3.5 when 7 is still to come.
                if self._buffer[end : end + 1] in ENDS_VALUE or not self._read_more(size):
                    self.skip(length)
                    return
                continue
            if not self._read_more(size):
                raise self.error(fault)
            size *= 2

    def _read_more(self, size: int) -> bool:
        content = self._file.read(min(size, self._left))
        self._left -= len(content)
        self._buffer, self._at = self._buffer[self._at :] + content.decode("latin-1"), 0
        return bool(content)

    def error(self, what: str) -> UserError:
        """The error that something is wrong here."""
        return UserError(f"{self.path} is not JSON: {what} at byte {self.byte}")
