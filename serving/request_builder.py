"""From checked request bodies to the prompts that the model takes, with every limit checked on the way."""

import re
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from model.errors import UserError
from model.generation.generate import Request
from model.generation.sampling import SamplingParams
from serving.config import Limits
from serving.errors import ApiError, bad_request
from serving.images import decode_data_url
from serving.schemas import ChatRequest, ImagePart, ImageSampling, ImagesRequest, Message, TextPart
from serving.stream_decoder import TEXT_SEPARATOR
from serving.thread_safe_processor import ThreadSafeProcessor

RANDOM_SEED_BITS = 31
SMALLEST_TEMPERATURE = 1e-3  # below, a temperature means the likeliest choice, as 0 does
SMALLEST_TOP_P = 1e-6  # below, a top-p keeps the best choice alone, as this does
_MESSAGE_PATH = re.compile(r"messages\[\d+\](\.\w+)?")
_ASKS_TO_DRAW = re.compile(r"\s*(draw|paint)\b", re.IGNORECASE)


class RequestBuilder:
    """Writes the prompts of a request: one per choice, alike but for the seed.

    Args:
        image_size: Side of a drawn picture in pixels.
        num_image_tokens: Positions that a drawn picture takes, less its start and its end.
        context: Positions that the model has for prompt and reply together.
    """

    def __init__(
        self,
        processor: ThreadSafeProcessor,
        limits: Limits,
        *,
        image_size: int,
        num_image_tokens: int,
        context: int,
    ) -> None:
        self._processor = processor
        self._limits = limits
        self._image_size = image_size
        self._max_tokens = min(limits.prompt_tokens, context - 1)
        self._max_tokens_before_image = min(limits.prompt_tokens, context - num_image_tokens - 2)

    def chat_requests(self, body: ChatRequest) -> list[Request]:
        """Prompts of a chat request; ApiError 400 or 413 names what is wrong."""
        self._check_chat(body)
        max_images, new_tokens = body.image.max_images, body.new_tokens
        if "image" not in body.modalities:
            max_images = 0
        elif body.draws_only:
            if max_images == 0:
                message = "image.max_images must be at least 1 where only images are asked for, got 0"
                raise bad_request(message, "image.max_images")
            max_images = 1 if max_images is None else max_images
            new_tokens = self._limits.preamble_tokens if new_tokens is None else new_tokens
        params = _params(
            body.image,
            body.seed,
            text_temperature=_temperature(body.temperature),
            text_top_p=_top_p(body.top_p),
            text_top_k=body.top_k,
            max_new_tokens=new_tokens,
            max_images=max_images,
        )
        messages = [
            self._message(message, f"messages[{index}]") for index, message in enumerate(body.messages)
        ]
        return self._copies(self.build(messages, params, must_draw=body.draws_only), body.n)

    def image_requests(self, body: ImagesRequest) -> list[Request]:
        """Prompts of an images request; ApiError 400 names what is wrong."""
        _check_most("n", body.n, self._limits.choices)
        size = f"{self._image_size}x{self._image_size}"
        if body.size not in ("auto", size):
            raise bad_request(f"size must be 'auto' or '{size}', got {body.size[:40]!r}", "size")
        self._check_characters(len(body.prompt), "prompt")
        text = body.prompt if _ASKS_TO_DRAW.match(body.prompt) else f"Draw {body.prompt}"
        params = _params(body.image, body.seed, max_images=1, max_new_tokens=self._limits.preamble_tokens)
        messages = [{"role": "user", "content": text}]
        return self._copies(self.build(messages, params, must_draw=True, param="prompt"), body.n)

    def build(
        self,
        messages: list[dict[str, Any]],
        params: SamplingParams,
        *,
        force_image: bool = False,
        must_draw: bool = False,
        param: str = "messages",
    ) -> Request:
        """One prompt; ApiError 400 where the processor refuses it or it leaves no room for the reply.

        Args:
            force_image: The reply begins with a picture.
            must_draw: There must be room for a picture after the prompt.
            param: The field of the request that holds the prompt, for errors.
        """
        try:
            request = self._processor.request(messages, params, force_image=force_image)
        except UserError as error:
            raise _with_api_path(error, param) from None
        length = len(request.input_ids)
        most = self._max_tokens_before_image if force_image or must_draw else self._max_tokens
        if length > most:
            message = f"the prompt has {length} tokens; at most {most} leave room for the reply"
            raise bad_request(message, param, "context_length_exceeded")
        return request

    def _check_chat(self, body: ChatRequest) -> None:
        limits = self._limits
        _check_most("n", body.n, limits.choices)
        _check_most("the number of messages", len(body.messages), limits.messages, param="messages")
        limit_name = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
        _check_most(limit_name, body.new_tokens or 0, limits.new_tokens)
        _check_most("image.max_images", body.image.max_images or 0, limits.drawn_images)
        parts = [part for message in body.messages for _, part in _ordered(message)]
        self._check_characters(
            sum(len(part.text) for part in parts if isinstance(part, TextPart)), "messages"
        )
        num_images = sum(isinstance(part, ImagePart) for part in parts)
        _check_most("the number of images", num_images, limits.images_per_request, param="messages")

    def _check_characters(self, number: int, param: str) -> None:
        most = self._limits.prompt_characters
        if number > most:
            message = f"{param} has {number} characters; at most {most} are taken"
            raise bad_request(message, param, "context_length_exceeded")

    def _message(self, message: Message, param: str) -> dict[str, Any]:
        """The processor's form of a turn; pictures of an assistant are those it has drawn."""
        role = "system" if message.role == "developer" else message.role
        if isinstance(message.content, str) and not message.images:
            return {"role": role, "content": message.content}
        if role == "system":
            return {"role": role, "content": _only_text(message, param)}
        is_assistant = role == "assistant"
        parts: list[dict[str, Any]] = []
        for path, part in _ordered(message):
            separator = TEXT_SEPARATOR if is_assistant and parts else ""
            text = separator + (part.text if isinstance(part, TextPart) else "")
            if parts and parts[-1]["type"] == "text":
                parts[-1]["text"] += text  # made one, so that no reserved word hides between two parts
            elif text:
                parts.append({"type": "text", "text": text})
            if isinstance(part, ImagePart):
                image = decode_data_url(part.image_url.url, self._limits, f"{param}.{path}.image_url.url")
                parts.append({"type": "image_gen" if is_assistant else "image", "image": image})
        return {"role": role, "content": parts}

    def _copies(self, prompt: Request, number: int) -> list[Request]:
        seeds = range(prompt.params.seed, prompt.params.seed + number)
        return [replace(prompt, params=replace(prompt.params, seed=seed)) for seed in seeds]


def _only_text(message: Message, param: str) -> str:
    parts = list(_ordered(message))
    for path, part in parts:
        if not isinstance(part, TextPart):
            raise bad_request("a system message has text only", f"{param}.{path}")
    return "".join(part.text for _, part in parts)


def _ordered(message: Message) -> Iterator[tuple[str, TextPart | ImagePart]]:
    """The parts of a message, each with its path; pictures beside the content stand after it."""
    if isinstance(message.content, str) and message.content:
        yield "content", TextPart(type="text", text=message.content)
    elif message.content:
        yield from _with_path("content", message.content)
    yield from _with_path("images", message.images)


def _with_path(
    name: str, parts: Sequence[TextPart | ImagePart]
) -> Iterator[tuple[str, TextPart | ImagePart]]:
    for index, part in enumerate(parts):
        yield f"{name}[{index}]", part


def _params(image: ImageSampling, seed: int | None, **asked: float | int | None) -> SamplingParams:
    """The model's defaults, replaced where the request says something."""
    asked = {
        "image_temperature": _temperature(image.temperature),
        "image_top_k": image.top_k,
        "image_top_p": _top_p(image.top_p),
        "fine_top_p": _top_p(image.fine_top_p),
        "guidance": image.guidance,
        "fine_guidance": image.fine_guidance,
        "guidance_mode": image.guidance_mode,
        "cooling": image.cooling,
        "smoothing": image.smoothing,
        "seed": secrets.randbits(RANDOM_SEED_BITS) if seed is None else seed,
        **asked,
    }
    return SamplingParams(**{name: value for name, value in asked.items() if value is not None})


def _temperature(value: float | None) -> float | None:
    return 0.0 if value is not None and value < SMALLEST_TEMPERATURE else value


def _top_p(value: float | None) -> float | None:
    return None if value is None else max(value, SMALLEST_TOP_P)


def _with_api_path(error: UserError, param: str) -> ApiError:
    """The complaint of the processor; it names the message, and a prompt by itself is the only one."""
    found = _MESSAGE_PATH.match(str(error))
    if param == "messages":
        return bad_request(str(error), found[0] if found else param)
    return bad_request(_MESSAGE_PATH.sub(param, str(error)), param)


def _check_most(name: str, value: int, most: int, param: str | None = None) -> None:
    if value > most:
        raise bad_request(f"{name} must be at most {most}, got {value}", param or name)
