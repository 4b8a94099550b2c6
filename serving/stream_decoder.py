"""One choice of a stream as it grows: from events to the pieces that a client should see next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:  # types alone: the HTTP face starts without waiting for torch
    from model.generation.generate import Event
    from serving.thread_safe_processor import ThreadSafeProcessor

TEXT_SEPARATOR = " "  # between the texts before and after a picture, as `VargptProcessor.text` has it
UNFINISHED = "\ufffd"  # how a character looks whose last bytes are still to come


class StreamDecoder:
    """Gives out pieces that always join to the whole reply; starts afresh after each picture.

    Args:
        in_parts: Keep the texts around a picture apart, instead of joining them by a space.
    """

    def __init__(self, processor: ThreadSafeProcessor, *, in_parts: bool = False) -> None:
        self._processor = processor
        self._separator = "" if in_parts else TEXT_SEPARATOR
        self._has_text = False
        self._token_ids: list[int] = []
        self._images: list[Any] = []
        self._num_given = 0  # characters of the text since the last picture

    def on_event(self, event: Event) -> list[str | Image.Image]:
        """What an event adds: often nothing, for a character may need several tokens."""
        if event.type == "image":
            self._images.append(event.image)  # shown when the token that ends it has come
        if event.type != "token":
            return []
        self._token_ids.append(event.token_id)
        pieces = self._fresh(hold_back=True)
        if any(isinstance(piece, Image.Image) for piece in pieces):
            self._token_ids, self._images, self._num_given = [], [], 0
        return pieces

    def close(self) -> list[str | Image.Image]:
        """What was held back to the end."""
        return self._fresh()

    def _fresh(self, *, hold_back: bool = False) -> list[str | Image.Image]:
        pieces = self._processor.pieces(self._token_ids, self._images)
        text = "".join(piece for piece in pieces if isinstance(piece, str))
        if hold_back:
            text = text.rstrip(UNFINISHED)
        pictures = [piece for piece in pieces if isinstance(piece, Image.Image)]
        if len(text) <= self._num_given:
            return pictures
        fresh = text[self._num_given :]
        if self._num_given == 0 and self._has_text:
            fresh = self._separator + fresh
        self._num_given, self._has_text = len(text), True
        return [fresh, *pictures]
