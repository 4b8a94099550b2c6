"""Limits of the service: everything that bounds what requests may cost, in one place."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Self

from model.errors import UserError

MEBIBYTE = 1024 * 1024
ENVIRONMENT_PREFIX = "VARGPT_LIMIT_"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one request, one batch and the queue may cost at most."""

    body_bytes: int = 16 * MEBIBYTE
    bodies_bytes: int = 256 * MEBIBYTE  # of all bodies that have not yet become prompts
    body_values: int = 65_536  # commas and opening brackets in a body: they bound the work of parsing it
    body_seconds: float = 30.0  # from the first header to the last byte of the body
    image_bytes: int = 8 * MEBIBYTE  # after base64
    image_pixels: int = 4096 * 4096  # width times height, read from the header
    image_side: int = 8192  # the longer one, in pixels
    image_aspect: float = 16.0  # longer side over shorter side
    images_per_request: int = 8
    messages: int = 64
    prompt_characters: int = 32_768  # of all messages together, counted before the text tokenizer runs
    prompt_tokens: int = 2048
    new_tokens: int = 1024
    drawn_images: int = 8  # in one reply
    preamble_tokens: int = 64  # words before the picture where only pictures were asked for
    choices: int = 8  # n
    queue_length: int = 64  # choices that wait, over all requests
    batch_size: int = 16
    deadline_seconds: float = 120.0  # from arrival to the end of the reply
    send_seconds: float = 30.0  # one send to a client that does not read; what is late ends the connection
    open_requests: int = 128  # POST requests being read or answered
    preparing_requests: int = 2  # bodies are parsed and pictures decoded for so many requests at once
    heartbeat_seconds: float = 10.0  # a comment line in a stream that has nothing to say
    stall_seconds: float = 300.0  # an engine without progress for so long within one batch is not alive
    faults_in_a_row: int = 5  # an engine that has failed so often without a success is not alive

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not 0 < value < float("inf"):
                raise UserError(f"{field.name} must be positive and finite, got {value}")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """Defaults, replaced where VARGPT_LIMIT_<NAME> is set."""
        known = {ENVIRONMENT_PREFIX + field.name.upper(): field for field in fields(cls)}
        asked = {name for name in environment if name.startswith(ENVIRONMENT_PREFIX)}
        if unknown := sorted(asked - known.keys()):
            raise UserError(f"{unknown[0]} is not a limit of the service; known: {', '.join(sorted(known))}")
        return cls(**{known[name].name: _number(name, environment[name], known[name].type) for name in asked})


def _number(name: str, text: str, kind: type) -> int | float:
    try:
        return kind(text)
    except ValueError:
        raise UserError(f"{name} must be {kind.__name__}, got {text!r}") from None
