"""Answers in OpenAI's shapes: whole completions and the chunks of a stream."""

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

if TYPE_CHECKING:  # types alone: the HTTP face starts without waiting for torch
    from model.generation.generate import Reply

Piece = str | Image.Image  # what a reply consists of, in order

DONE = "data: [DONE]\n\n"
HEARTBEAT_LINE = ": still working\n\n"


def event(body: dict[str, Any]) -> str:
    """One event of a stream."""
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


def drawing(pictures: Sequence[Image.Image], replies: Sequence[Reply], seed: int) -> dict[str, Any]:
    """Body of an answer from /v1/images/generations."""
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
class ChatShape:
    """The parts that all chunks of one answer, or one whole answer, have in common.

    Args:
        in_parts: Content as a list of ordered parts instead of a string with the pictures beside it.
        texts: Whether the caller wants text at all.
    """

    model: str
    seed: int
    in_parts: bool = False
    texts: bool = True
    with_usage: bool = False
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=unix_now)

    def completion(self, choices: Sequence[Sequence[Piece]], replies: Sequence[Reply]) -> dict[str, Any]:
        """Body of an answer that is not streamed."""
        return {
            "id": self.id,
            "object": "chat.completion",
            "created": self.created,
            "model": self.model,
            "seed": self.seed,
            "choices": [
                {
                    "index": index,
                    "message": self._message(pieces),
                    "finish_reason": reply.finish_reason,
                    "logprobs": None,
                }
                for index, (pieces, reply) in enumerate(zip(choices, replies, strict=True))
            ],
            "usage": usage(replies),
        }

    def opening(self, index: int) -> str:
        """The first chunk of a choice: who speaks."""
        return self._chunk("text", index, {"role": "assistant", "content": [] if self.in_parts else ""})

    def piece(self, index: int, piece: Piece) -> str:
        """A chunk with some more text or with one picture."""
        modality = "text" if isinstance(piece, str) else "image"
        if self.in_parts:
            return self._chunk(modality, index, {"content": [_part(piece)]})
        if isinstance(piece, str):
            return self._chunk(modality, index, {"content": piece})
        return self._chunk(modality, index, {"images": [_part(piece)]})

    def closing(self, index: int, finish_reason: str) -> str:
        """The last chunk of a choice."""
        return self._chunk("text", index, {}, finish_reason)

    def usage_chunk(self, replies: Sequence[Reply]) -> str:
        """The last chunk of a stream that was asked to include its usage."""
        return event({**self._chunk_head("text"), "choices": [], "usage": usage(replies)})

    def wants(self, piece: Piece) -> bool:
        """Whether a piece is of a modality that was asked for, and not empty."""
        return self.texts and piece != "" if isinstance(piece, str) else True

    def _message(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        wanted = [piece for piece in pieces if self.wants(piece)]
        if self.in_parts:
            return {"role": "assistant", "content": [_part(piece) for piece in wanted]}
        text = TEXT_SEPARATOR.join(piece for piece in wanted if isinstance(piece, str))
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if pictures := [_part(piece) for piece in wanted if not isinstance(piece, str)]:
            message["images"] = pictures
        return message

    def _chunk_head(self, modality: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "modality": modality,
        }

    def _chunk(
        self, modality: str, index: int, delta: dict[str, Any], finish_reason: str | None = None
    ) -> str:
        choice = {"index": index, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
        body = {**self._chunk_head(modality), "choices": [choice]}
        return event({**body, "usage": None} if self.with_usage else body)


def _part(piece: Piece) -> dict[str, Any]:
    if isinstance(piece, str):
        return {"type": "text", "text": piece}
    return {"type": "image_url", "image_url": {"url": encode_data_url(piece)}}
