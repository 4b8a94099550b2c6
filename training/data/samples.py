"""One sample: a conversation with references to its images, validated when it is made."""

import errno
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
from model.text_tokenizer import BOS, EOS, IMAGE, IMAGE_END, IMAGE_GEN, IMAGE_PAD, IMAGE_START, PAD
from model.transforms import check_shape, rgb_on_white

logger = logging.getLogger(__name__)

# Roles as files name them -> ours; LLaVA and ShareGPT write human and gpt.
ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
}
RESERVED_TOKENS = (BOS, EOS, PAD, IMAGE_START, IMAGE_END, IMAGE_PAD)
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
# Faults that the user must fix. Any other OSError is a file system, such as NFS, that fails for a moment.
_NEVER_READABLE = {
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EACCES,
    errno.EPERM,
    errno.ENAMETOOLONG,
    errno.ELOOP,
}
# Waits before the second, third and fourth attempt to read an image.
RETRY_SECONDS = (0.5, 2.0, 8.0)
# What Pillow raises for bytes that are no image, or only part of one.
_DECODE_ERRORS = (
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
    """One turn of a conversation; `<image>` and `<image_gen>` in `content` stand for images."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class ImageRef:
    """Reference to an encoded image: a whole file, or `length` bytes of it from `offset` on."""

    path: Path
    offset: int = 0
    length: int = -1

    def read(self) -> bytes:
        """The encoded image. Raises OSError."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.length)

    def open(self) -> Image.Image:
        """The decoded image: upright, RGB, on white where it is transparent; the service decodes alike.

        Raises UserError that names the file when it is missing or broken, and OSError when the file system
        fails several times in a row.
        """
        return self.decode(self.content())

    def decode(self, content: bytes) -> Image.Image:
        """As `open`, of what `content` has read."""
        try:
            with Image.open(io.BytesIO(content)) as image:
                check_shape(image)
                return rgb_on_white(ImageOps.exif_transpose(image))
        except _DECODE_ERRORS as error:
            raise UserError(f"broken image {self.path}: {error}") from None

    def content(self) -> bytes:
        """The encoded image; what fails for a moment is tried again. Raises as `open`."""
        for wait in RETRY_SECONDS:
            try:
                return self._read_once()
            except OSError as error:
                logger.warning("%s cannot be read, trying again in %g s: %s", self.path, wait, error)
                time.sleep(wait)
        return self._read_once()

    def _read_once(self) -> bytes:
        """The encoded image. UserError for a file that is not there, which no second attempt would fix."""
        try:
            return self.read()
        except OSError as error:
            if error.errno not in _NEVER_READABLE:
                raise
            raise UserError(f"missing image {self.path}: {error.strerror}") from None


def is_image(path: Path) -> bool:
    """Whether a file is an image by its name; hidden files are not."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


@dataclass(frozen=True, slots=True)
class Sample:
    """A conversation and its images, in the order of their placeholders.

    A conversation that ends with the user's turn is a prompt, for evaluation.

    Args:
        source: The name of its dataset.
        meta: Other facts of the record, such as those that an answer is judged by.

    Raises:
        UserError: an empty turn, roles out of turn, a reserved token, or a wrong number of images.
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
        if (expected := text.count(IMAGE) + text.count(IMAGE_GEN)) != len(self.images):
            raise UserError(f"{len(self.images)} images for {expected} placeholders")

    def conversation(self) -> list[dict[str, str]]:
        """The messages as dictionaries of `role` and `content`, which the processor takes."""
        return [{"role": message.role, "content": message.content} for message in self.messages]


def _check_turn(message: Message, where: str) -> None:
    if message.role not in ROLES.values():
        raise UserError(f"{where}: unknown role {message.role!r}")
    if not isinstance(message.content, str):
        raise UserError(f"{where}: content must be text, got {type(message.content).__name__}")
    if not message.content.strip():
        raise UserError(f"{where} is empty")
    if token := next((token for token in RESERVED_TOKENS if token in message.content), None):
        raise UserError(f"{where} holds the reserved word {token!r}")
    if not message.content.isascii() and any("\ud800" <= letter <= "\udfff" for letter in message.content):
        raise UserError(f"{where} holds half a character")


def _check_order(roles: Sequence[str]) -> None:
    turns = list(roles[1:] if roles[0] == "system" else roles)
    if not turns or turns != [("user", "assistant")[index % 2] for index in range(len(turns))]:
        raise UserError(f"user and assistant must take turns, the user first; got {', '.join(roles)}")
