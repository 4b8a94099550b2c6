"""From the shapes of the HTTP face to what the model takes, with every limit checked on the way."""

import re
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from model.generation.generate import Request
from model.generation.sampling import SamplingParams
from serving.config import Limits
from serving.errors import ApiError, bad_request
from serving.images import decode_data_url
from serving.schemas import ChatRequest, ImagePart, ImageSampling, ImagesRequest, Message, TextPart
from serving.stream_decoder import TEXT_SEPARATOR
from serving.thread_safe_processor import ThreadSafeProcessor

RANDOM_SEED_BITS = 31
MAX_SEED = 2**63 - 1024  # the generator takes 63 bits; room for the seeds of further choices
API_NAMES = {  # of the fields of SamplingParams
    "text_temperature": "temperature",
    "text_top_k": "top_k",
    "text_top_p": "top_p",
    "max_new_tokens": "max_tokens",
    "image_temperature": "image.temperature",
    "image_top_k": "image.top_k",
    "image_top_p": "image.top_p",
    "fine_top_p": "image.fine_top_p",
    "guidance": "image.guidance",
    "fine_guidance": "image.fine_guidance",
    "guidance_mode": "image.guidance_mode",
    "cooling": "image.cooling",
    "smoothing": "image.smoothing",
    "max_images": "image.max_images",
}
_PARAMS_FIELD = re.compile(r"\b(" + "|".join(sorted(API_NAMES, key=len, reverse=True)) + r")\b")
_MESSAGE_PATH = re.compile(r"messages\[\d+\](\.\w+)?")
_ASKS_TO_DRAW = re.compile(r"\s*(draw|paint)\b", re.IGNORECASE)


class RequestBuilder:
    """Writes the prompts of a request: one per choice, alike but for the seed.

    Args:
        image_size: Side of a drawn picture in pixels.
        context: Positions that the model has for prompt and reply together.
    """

    def __init__(
        self, processor: ThreadSafeProcessor, limits: Limits, *, image_size: int, context: int
    ) -> None:
        self._processor = processor
        self._limits = limits
        self._image_size = image_size
        self._max_tokens = min(limits.prompt_tokens, context - 1)

    def chat(self, body: ChatRequest) -> list[Request]:
        """Prompts of a chat request."""
        self._check_chat(body)
        max_images, new_tokens = body.image.max_images, body.new_tokens
        if "image" not in body.modalities:
            max_images = 0
        elif body.draws_only:
            max_images = 1 if max_images is None else max_images
            new_tokens = self._limits.preamble_tokens if new_tokens is None else new_tokens
        params = _params(
            body.image,
            body.seed,
            text_temperature=body.temperature,
            text_top_p=body.top_p,
            text_top_k=body.top_k,
            max_new_tokens=new_tokens,
            max_images=max_images,
        )
        messages = [
            self._message(message, f"messages[{index}]") for index, message in enumerate(body.messages)
        ]
        return self._copies(self.write(messages, params), body.n)

    def drawing(self, body: ImagesRequest) -> list[Request]:
        """Prompts of an images request."""
        _check_most("n", body.n, self._limits.choices)
        size = f"{self._image_size}x{self._image_size}"
        if body.size not in ("auto", size):
            raise bad_request(f"size must be 'auto' or '{size}', got {body.size[:40]!r}", "size")
        self._check_characters(len(body.prompt), "prompt")
        text = body.prompt if _ASKS_TO_DRAW.match(body.prompt) else f"Draw {body.prompt}"
        params = _params(body.image, body.seed, max_images=1, max_new_tokens=self._limits.preamble_tokens)
        prompt = self.write([{"role": "user", "content": text}], params, param="prompt")
        return self._copies(prompt, body.n)

    def write(
        self,
        messages: list[dict[str, Any]],
        params: SamplingParams,
        *,
        force_image: bool = False,
        param: str = "messages",
    ) -> Request:
        """One prompt; what the processor refuses is a bad request."""
        try:
            request = self._processor.request(messages, params, force_image=force_image)
        except ValueError as error:
            raise _in_api_paths(error, param) from None
        if (length := len(request.input_ids)) > self._max_tokens:
            message = f"the prompt has {length} tokens; at most {self._max_tokens} are taken"
            raise bad_request(message, param, "context_length_exceeded")
        return request

    def _check_chat(self, body: ChatRequest) -> None:
        limits = self._limits
        _check_most("n", body.n, limits.choices)
        _check_most("the number of messages", len(body.messages), limits.messages, param="messages")
        _check_most("max_tokens", body.new_tokens or 0, limits.new_tokens)
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
        if isinstance(message.content, str) and not message.images:
            return {"role": message.role, "content": message.content}
        if message.role == "system":
            return {"role": "system", "content": _only_text(message, param)}
        is_ours = message.role == "assistant"
        parts: list[dict[str, Any]] = []
        for where, part in _ordered(message):
            if is_ours and parts:
                parts.append({"type": "text", "text": TEXT_SEPARATOR})
            if isinstance(part, TextPart):
                parts.append({"type": "text", "text": part.text})
            else:
                image = decode_data_url(part.image_url.url, self._limits, f"{param}.{where}.image_url.url")
                parts.append({"type": "image_gen" if is_ours else "image", "image": image})
        return {"role": message.role, "content": parts}

    def _copies(self, prompt: Request, number: int) -> list[Request]:
        seeds = range(prompt.params.seed, prompt.params.seed + number)
        return [replace(prompt, params=replace(prompt.params, seed=seed)) for seed in seeds]


def _only_text(message: Message, param: str) -> str:
    parts = list(_ordered(message))
    for where, part in parts:
        if not isinstance(part, TextPart):
            raise bad_request("a system message has text only", f"{param}.{where}")
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
    if seed is None:
        seed = secrets.randbits(RANDOM_SEED_BITS)
    if not 0 <= seed <= MAX_SEED:
        raise bad_request(f"seed must be between 0 and {MAX_SEED}, got {seed}", "seed")
    asked = {
        "image_temperature": image.temperature,
        "image_top_k": image.top_k,
        "image_top_p": image.top_p,
        "fine_top_p": image.fine_top_p,
        "guidance": image.guidance,
        "fine_guidance": image.fine_guidance,
        "guidance_mode": image.guidance_mode,
        "cooling": image.cooling,
        "smoothing": image.smoothing,
        **asked,
    }
    given = {name: value for name, value in asked.items() if value is not None}
    try:
        return SamplingParams(seed=seed, **given)
    except ValueError as error:
        raise _in_api_names(error) from None


def _in_api_names(error: ValueError) -> ApiError:
    """The complaint of SamplingParams, with the names that the caller has used."""
    found = _PARAMS_FIELD.search(str(error))
    message = _PARAMS_FIELD.sub(lambda match: API_NAMES[match[1]], str(error))
    return bad_request(message, API_NAMES[found[1]] if found else None)


def _in_api_paths(error: ValueError, param: str) -> ApiError:
    """The complaint of the processor; it names the message, and a prompt by itself is the only one."""
    found = _MESSAGE_PATH.match(str(error))
    if param == "messages":
        return bad_request(str(error), found[0] if found else param)
    return bad_request(_MESSAGE_PATH.sub(param, str(error)), param)


def _check_most(name: str, value: int, most: int, param: str | None = None) -> None:
    if value > most:
        raise bad_request(f"{name} must be at most {most}, got {value}", param or name)
