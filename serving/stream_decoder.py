"""Incremental decoding of one choice of a stream: from the model's events to texts and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image

from serving.stop_strings import settled_length

if TYPE_CHECKING:  # types alone: the HTTP API starts without waiting for torch
    from model.generation.generate import Event
    from serving.thread_safe_processor import ThreadSafeProcessor

TEXT_SEPARATOR = " "  # between the texts before and after a picture, as `VargptProcessor.text` has it
UNFINISHED = "\ufffd"  # how a character looks whose last bytes are still to come


class StreamDecoder:
    """Gives out parts that always join to the whole reply; starts afresh after each picture.

    Args:
        in_parts: Keep the texts around a picture apart, instead of joining them by a space.
        stops: What may be the beginning of one of these strings is held back.
    """

    def __init__(
        self, processor: ThreadSafeProcessor, *, in_parts: bool = False, stops: Sequence[str] = ()
    ) -> None:
        self._processor = processor
        self._separator = "" if in_parts else TEXT_SEPARATOR
        self._stops = stops
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
        parts = self._new_parts(hold_back=True)
        if any(isinstance(part, Image.Image) for part in parts):
            self._token_ids, self._images, self._num_given = [], [], 0
        return parts

    def close(self) -> list[str | Image.Image]:
        """What was held back to the end."""
        return self._new_parts()

    def _new_parts(self, *, hold_back: bool = False) -> list[str | Image.Image]:
        parts = self._processor.parts(self._token_ids, self._images, self._stops)
        text = "".join(part for part in parts if isinstance(part, str))
        pictures = [part for part in parts if isinstance(part, Image.Image)]
        if hold_back and not pictures:
            text = text.rstrip(UNFINISHED)
            text = text[: settled_length(text, self._stops)]
        if len(text) <= self._num_given:
            return pictures
        new = text[self._num_given :]
        if self._num_given == 0 and self._has_text:
            new = self._separator + new
        self._num_given, self._has_text = len(text), True
        return [new, *pictures]
