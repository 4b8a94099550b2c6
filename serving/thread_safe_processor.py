"""The processor behind a lock, for its text tokenizer may not be used by two threads at once."""

import threading
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedTokenizerBase

from model.generation.generate import Reply, Request
from model.generation.sampling import SamplingParams
from model.processing import VargptProcessor


class ThreadSafeProcessor:
    """The two things that serving needs of a processor, safe from any thread."""

    def __init__(self, processor: VargptProcessor) -> None:
        self._processor = processor
        self._lock = threading.Lock()

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The text tokenizer itself, not guarded."""
        return self._processor.tokenizer

    def request(
        self, messages: list[dict[str, Any]], params: SamplingParams, *, force_image: bool = False
    ) -> Request:
        """What the model takes."""
        with self._lock:
            return self._processor.request(messages, params, force_image=force_image)

    def pieces(self, token_ids: Sequence[int], images: Sequence[torch.Tensor]) -> list[str | Image.Image]:
        """Text and pictures of a reply or of a part of one, in order."""
        reply = Reply(
            list(token_ids), list(images), finish_reason="stop", num_prompt_tokens=0, num_image_tokens=0
        )
        with self._lock:
            return [content for _, content in self._processor.segments(reply)]
