"""What every answer under /v1 passes through: identity headers, early refusal, the limit on bodies."""

import asyncio
import re
import uuid
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.config import Limits
from serving.errors import ApiError

_PLAIN_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)


class IdentityMiddleware:
    """Puts X-Request-Id (the caller's, if plain) and X-Model-Version on every answer.

    Args:
        model_version: Asked at every answer, for it is not known before the model is loaded.
    """

    def __init__(self, app: ASGIApp, model_version: Callable[[], str]) -> None:
        self.app = app
        self.model_version = model_version

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _PLAIN_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                headers["X-Model-Version"] = self.model_version()
            await send(message)

        await self.app(scope, receive, send_with_headers)


class BodyMiddleware:
    """Refuses a POST before its body is read where that is possible, and never reads more than the limit.

    Args:
        check_room: Raises ApiError when no request would be taken now.
    """

    def __init__(self, app: ASGIApp, limits: Limits, check_room: Callable[[], None]) -> None:
        self.app = app
        self.limits = limits
        self.check_room = check_room
        self._num_open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        self._num_open += 1
        try:
            await self._answer(scope, receive, send)
        except ApiError as error:
            await error.response()(scope, receive, send)
        finally:
            self._num_open -= 1

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.check_room()
        if self._num_open > self.limits.open_requests:
            raise ApiError(429, "too many requests are open", code="too_many_requests", retry_after=1)
        body = await self._read(scope, receive)
        if body is None:
            return
        replayed = False

        async def replay() -> Message:
            nonlocal replayed
            if replayed:
                return await receive()  # the next thing to on_event is that the client has gone
            replayed = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, replay, send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        """The whole body; None when the client has gone."""
        limit = self.limits.body_bytes
        declared = Headers(scope=scope).get("content-length", "0")
        if not declared.isdecimal() or int(declared) > limit:
            raise _body_too_large(limit)
        chunks = bytearray()
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    chunks += message.get("body", b"")
                    if len(chunks) > limit:
                        raise _body_too_large(limit)
                    if not message.get("more_body", False):
                        return bytes(chunks)
        except TimeoutError:
            message = f"the body did not arrive within {self.limits.body_seconds:g} seconds"
            raise ApiError(408, message, code="body_timeout") from None


def _body_too_large(limit: int) -> ApiError:
    return ApiError(413, f"the body has more than {limit} bytes", code="body_too_large")
