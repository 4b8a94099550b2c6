"""Request bodies: read within limits on size, time and the bytes of all bodies together, then parsed."""

import asyncio
import email.message
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from serving.config import Limits
from serving.errors import ApiError, bad_request, from_validation, too_large

RETRY_SECONDS = 1
MAX_LENGTH_DIGITS = 18  # of a Content-Length
MARKS = b",{["  # every JSON value but the outermost and a lone one in its container comes after one of them
Schema = TypeVar("Schema", bound=BaseModel)


class BodyReader:
    """Reads bodies, and counts their bytes for as long as somebody may need them."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.bytes_held = 0  # of all bodies that are being read or used
        self.preparation_slots = asyncio.Semaphore(limits.preparing_requests)

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytearray]:
        """The whole body of a request, for the time of the block.

        Raises:
            ApiError: 413 over the size limit, 429 over the budget of all bodies, 408 too late.
            ClientDisconnect: The client has gone.
        """
        self._check_declared(request.headers.get("content-length", "0"))
        body = bytearray()
        try:
            await self._fill(body, request)
            yield body
        finally:
            self.bytes_held -= len(body)

    async def _fill(self, body: bytearray, request: Request) -> None:
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                async for chunk in request.stream():
                    self._check_room(len(body), len(chunk))
                    self.bytes_held += len(chunk)
                    body += chunk
        except TimeoutError:
            message = f"the body did not arrive within {self._limits.body_seconds:g} seconds"
            raise ApiError(408, message, code="body_timeout") from None

    def _check_declared(self, length: str) -> None:
        is_number = length.isdecimal() and len(length) <= MAX_LENGTH_DIGITS
        self._check_room(0, int(length) if is_number else self._limits.body_bytes + 1)

    def _check_room(self, num_read: int, num_more: int) -> None:
        limits = self._limits
        if num_read + num_more > limits.body_bytes:
            raise too_large(f"the body has more than {limits.body_bytes} bytes", code="body_too_large")
        if self.bytes_held + num_more > limits.bodies_bytes:
            message = f"the bodies of all requests together have more than {limits.bodies_bytes} bytes"
            raise ApiError(429, message, code="too_many_bytes", retry_after=RETRY_SECONDS)


def parse_body(body: bytearray, content_type: str, schema: type[Schema], limits: Limits) -> Schema:
    """The checked body, in time and memory bounded by its limits; ApiError 400 names the first fault.

    Forms and plain text are refused, for a page elsewhere may send those to a local service.
    """
    if not _is_json(content_type):
        raise bad_request("the body must be a JSON object sent as application/json", code="invalid_json")
    num_values = sum(body.count(mark) for mark in MARKS)
    if num_values > limits.body_values:
        message = (
            f"the body has {num_values} commas and opening brackets; at most {limits.body_values} are read"
        )
        raise bad_request(message, code="too_many_values")
    try:
        return schema.model_validate_json(body)
    except ValidationError as error:
        raise from_validation(error.errors(include_url=False)[0]) from None


def _is_json(content_type: str) -> bool:
    message = email.message.Message()
    message["content-type"] = content_type
    subtype = message.get_content_subtype()
    return message.get_content_maintype() == "application" and (
        subtype == "json" or subtype.endswith("+json")
    )
