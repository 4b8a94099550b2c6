"""The processor for use by several threads at once."""

import copy
import queue
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedTokenizerBase

from model.generation.generate import Reply, Request
from model.generation.sampling import SamplingParams
from model.processing import VargptProcessor
from model.text_tokenizer import IMAGE_END, IMAGE_START
from serving.stop_strings import find_stop


class ThreadSafeProcessor:
    """Writes prompts with copies of a processor, one thread each, and decodes replies with another.

    Text tokenizers change while they encode and may not be shared then; while they only decode they do not
    change, so that decoding waits for nobody.

    Args:
        num_writers: So many threads write prompts at once; more of them wait.
    """

    def __init__(self, processor: VargptProcessor, num_writers: int) -> None:
        self._reader = processor
        self._writers: queue.SimpleQueue[VargptProcessor] = queue.SimpleQueue()
        for _ in range(num_writers):
            self._writers.put(copy.deepcopy(processor))
        self._image_marks = set(processor.tokenizer.convert_tokens_to_ids([IMAGE_START, IMAGE_END]))

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The text tokenizer that decodes."""
        return self._reader.tokenizer

    def request(
        self, messages: list[dict[str, Any]], params: SamplingParams, *, force_image: bool = False
    ) -> Request:
        """What the model takes."""
        writer = self._writers.get()
        try:
            return writer.request(messages, params, force_image=force_image)
        finally:
            self._writers.put(writer)

    def parts(
        self, token_ids: Sequence[int], images: Sequence[torch.Tensor], stops: Sequence[str] = ()
    ) -> list[str | Image.Image]:
        """Texts and pictures of a reply, or of its beginning, in order; a stop string ends it."""
        found: list[str | Image.Image] = []
        for _, content in self._reader.segments(_reply(token_ids, images)):
            if isinstance(content, str) and (end := find_stop(content, stops)) is not None:
                return [*found, content[:end]]
            found.append(content)
        return found

    def text(self, token_ids: Sequence[int]) -> str:
        """The text of tokens that stand before, after or between pictures."""
        return self._reader.text(_reply([token for token in token_ids if token not in self._image_marks], []))


def _reply(token_ids: Sequence[int], images: Sequence[torch.Tensor]) -> Reply:
    return Reply(list(token_ids), list(images), finish_reason="stop", num_prompt_tokens=0, num_image_tokens=0)
