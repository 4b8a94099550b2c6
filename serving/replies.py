"""Response bodies in OpenAI's shapes: whole completions, and the events of a stream."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from PIL import Image

from serving.images import encode_data_url, encode_png
from serving.loaded_model import unix_now
from serving.stream_decoder import TEXT_SEPARATOR

if TYPE_CHECKING:  # types alone: the HTTP API starts without waiting for torch
    from model.generation.generate import Reply

ReplyPart = str | Image.Image  # what a reply consists of, in order

DONE = "data: [DONE]\n\n"
HEARTBEAT = ": still working\n\n"


def event(body: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n"


def usage(replies: Sequence[Reply]) -> dict[str, Any]:
    """Tokens of one HTTP request; a prompt that several choices share counts once."""
    num_prompt = replies[0].num_prompt_tokens
    num_text = sum(len(reply.token_ids) for reply in replies)
    num_image = sum(reply.num_image_tokens for reply in replies)
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_text + num_image,
        "total_tokens": num_prompt + num_text + num_image,
        "completion_tokens_details": {"text_tokens": num_text, "image_tokens": num_image},
    }


def images_body(pictures: Sequence[Image.Image], replies: Sequence[Reply], seed: int) -> dict[str, Any]:
    """Body of a response of /v1/images/generations."""
    spent = usage(replies)
    width, height = pictures[0].size
    return {
        "created": unix_now(),
        "data": [
            {"b64_json": encode_png(picture), "url": None, "revised_prompt": None} for picture in pictures
        ],
        "output_format": "png",
        "size": f"{width}x{height}",
        "seed": seed,
        "usage": {
            "input_tokens": spent["prompt_tokens"],
            "output_tokens": spent["completion_tokens"],
            "total_tokens": spent["total_tokens"],
        },
    }


@dataclass(frozen=True, kw_only=True)
class ChatReplyFormat:
    """What all chunks of one chat response, or one whole response, have in common.

    Args:
        in_parts: Content as a list of ordered parts instead of a string with the pictures beside it.
        with_text: Whether the caller wants text at all.
        with_usage: Whether a stream ends with its usage.
    """

    model: str
    seed: int
    in_parts: bool = False
    with_text: bool = True
    with_usage: bool = False
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=unix_now)

    def completion(self, choices: Sequence[Sequence[ReplyPart]], replies: Sequence[Reply]) -> dict[str, Any]:
        """Body of a response that is not streamed."""
        return {
            "id": self.id,
            "object": "chat.completion",
            "created": self.created,
            "model": self.model,
            "seed": self.seed,
            "choices": [
                {
                    "index": index,
                    "message": self._message(parts),
                    "finish_reason": reply.finish_reason,
                    "logprobs": None,
                }
                for index, (parts, reply) in enumerate(zip(choices, replies, strict=True))
            ],
            "usage": usage(replies),
        }

    def first_event(self, index: int) -> str:
        """The first event of a choice: its role."""
        return self._event("text", index, {"role": "assistant", "content": [] if self.in_parts else ""})

    def part_event(self, index: int, part: ReplyPart) -> str:
        """An event with some more text or with one picture."""
        modality = "text" if isinstance(part, str) else "image"
        if self.in_parts:
            return self._event(modality, index, {"content": [_content_part(part)]})
        if isinstance(part, str):
            return self._event(modality, index, {"content": part})
        return self._event(modality, index, {"images": [_content_part(part)]})

    def last_event(self, index: int, finish_reason: str) -> str:
        """The last event of a choice."""
        return self._event("text", index, {}, finish_reason)

    def usage_event(self, replies: Sequence[Reply]) -> str:
        """The last event of a stream that was asked to include its usage."""
        return event({**self._common("text"), "choices": [], "usage": usage(replies)})

    def wants(self, part: ReplyPart) -> bool:
        """Whether a part is of a modality that was asked for, and not empty."""
        return self.with_text and part != "" if isinstance(part, str) else True

    def _message(self, parts: Sequence[ReplyPart]) -> dict[str, Any]:
        wanted = [part for part in parts if self.wants(part)]
        if self.in_parts:
            return {"role": "assistant", "content": [_content_part(part) for part in wanted]}
        text = TEXT_SEPARATOR.join(part for part in wanted if isinstance(part, str))
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if pictures := [_content_part(part) for part in wanted if not isinstance(part, str)]:
            message["images"] = pictures
        return message

    def _common(self, modality: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "modality": modality,
        }

    def _event(
        self, modality: str, index: int, delta: dict[str, Any], finish_reason: str | None = None
    ) -> str:
        choice = {"index": index, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
        body = {**self._common(modality), "choices": [choice]}
        return event({**body, "usage": None} if self.with_usage else body)


def _content_part(part: ReplyPart) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    return {"type": "image_url", "image_url": {"url": encode_data_url(part)}}
