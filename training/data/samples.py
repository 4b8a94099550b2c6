"""One sample to learn from: a conversation with its pictures, checked where it enters."""

import io
import logging
import struct
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from model.errors import UserError
from model.text_tokenizer import EOS, IMAGE, IMAGE_END, IMAGE_GEN, IMAGE_PAD, IMAGE_START, PAD

logger = logging.getLogger(__name__)

# What files call the three speakers; LLaVA and ShareGPT say human and gpt.
ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
}
RESERVED = (EOS, PAD, IMAGE_START, IMAGE_END, IMAGE_PAD)
# What a user must mend; any other OSError is a file system that will be back, such as NFS.
_NOT_THERE = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)
# Waits between attempts to read.
RETRY_SECONDS = (0.5, 2.0, 8.0)
# What Pillow raises for bytes that are no picture, or only half of one.
_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    TypeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


@dataclass(frozen=True, slots=True)
class Message:
    """One turn; `content` has `<image>` and `<image_gen>` where pictures stand."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class ImageRef:
    """A picture that is read when opened: a whole file, or `length` bytes of it from `offset` on."""

    path: Path
    offset: int = 0
    length: int = -1

    def read(self) -> bytes:
        """The bytes as they lie there. OSError when they do not."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.length)

    def open(self) -> Image.Image:
        """The picture, upright, RGB, transparent places white, as the service reads pictures too.

        Raises UserError that names the picture when it is missing or broken, and OSError when the file system
        fails several times in a row.
        """
        content = self._read_with_retries()
        try:
            with Image.open(io.BytesIO(content)) as image:
                return _flat(ImageOps.exif_transpose(image))
        except _BROKEN as error:
            raise UserError(f"broken image {self.path}: {error}") from None

    def _read_with_retries(self) -> bytes:
        for wait in RETRY_SECONDS:
            try:
                return self._read_or_refuse()
            except OSError as error:
                logger.warning("%s cannot be read, trying again in %g s: %s", self.path, wait, error)
                time.sleep(wait)
        return self._read_or_refuse()

    def _read_or_refuse(self) -> bytes:
        try:
            return self.read()
        except _NOT_THERE as error:
            raise UserError(f"missing image {self.path}: {error.strerror}") from None


def _flat(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


@dataclass(frozen=True, slots=True)
class Sample:
    """A conversation and its pictures, in the order of their placeholders.

    A conversation that ends with the user's turn is a prompt: nothing to learn from, something to answer.

    Args:
        source: The name of the dataset it comes from.
        meta: What the record says beside its conversation, such as the facts that an answer is judged by.
    """

    id: str
    messages: tuple[Message, ...]
    images: tuple[ImageRef, ...]
    source: str
    meta: dict[str, Any]

    def __post_init__(self) -> None:
        if not self.messages:
            raise UserError("no turns")
        for index, message in enumerate(self.messages):
            _check_turn(message, f"turn {index}")
        _check_order([message.role for message in self.messages])
        text = "".join(message.content for message in self.messages)
        if (wanted := text.count(IMAGE) + text.count(IMAGE_GEN)) != len(self.images):
            raise UserError(f"{len(self.images)} images for {wanted} placeholders")

    def conversation(self) -> list[dict[str, str]]:
        """The messages as the processor takes them."""
        return [{"role": message.role, "content": message.content} for message in self.messages]


def _check_turn(message: Message, where: str) -> None:
    if message.role not in ROLES.values():
        raise UserError(f"{where}: unknown role {message.role!r}")
    if not isinstance(message.content, str):
        raise UserError(f"{where}: content must be text, got {type(message.content).__name__}")
    if not message.content.strip():
        raise UserError(f"{where} is empty")
    if word := next((word for word in RESERVED if word in message.content), None):
        raise UserError(f"{where} holds the reserved word {word!r}")
    if not message.content.isascii() and any("\ud800" <= letter <= "\udfff" for letter in message.content):
        raise UserError(f"{where} holds half a character")


def _check_order(roles: Sequence[str]) -> None:
    spoken = list(roles[1:] if roles[0] == "system" else roles)
    if not spoken or spoken != [("user", "assistant")[index % 2] for index in range(len(spoken))]:
        raise UserError(f"user and assistant must take turns, the user first; got {', '.join(roles)}")


def message_of(turn: Any, role_key: str, content_key: str, index: int) -> Message:
    """A turn of a record as a message. ValueError says what is wrong with it."""
    if not isinstance(turn, dict):
        raise UserError(f"turn {index} must be an object, got {type(turn).__name__}")
    if missing := {role_key, content_key} - turn.keys():
        raise UserError(f"turn {index} lacks {sorted(missing)}")
    role = turn[role_key]
    return Message(ROLES.get(role, role) if isinstance(role, str) else repr(role), turn[content_key])
