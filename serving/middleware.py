"""ASGI middleware: request id, request log, limit on slow readers; early rejection of POST requests."""

import asyncio
import re
import time
import uuid
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.config import Limits
from serving.errors import CLIENT_GONE, ApiError, SlowReaderError
from serving.loaded_model import ServedModel
from serving.request_log import (
    ANSWERED,
    GONE,
    INTERNAL_ERROR,
    OTHER_ROUTE,
    SLOW_READER,
    RequestRecord,
    logger,
)

CHAT_PATH, IMAGES_PATH = "/v1/chat/completions", "/v1/images/generations"
REFUSED = (429, 503)
RETRY_SECONDS = 1
_PLAIN_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)


class RequestLogMiddleware:
    """Makes the record of each request, puts its id on the response, and logs and counts it at its end.

    The id is the caller's, if plain. A client that does not read for longer than `send_seconds` is given up.
    """

    def __init__(self, app: ASGIApp, limits: Limits, served_model: ServedModel) -> None:
        self.app = app
        self.limits = limits
        self.served_model = served_model

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given, arrived = Headers(scope=scope).get("x-request-id", ""), time.monotonic()
        record = RequestRecord(
            request_id=given if _PLAIN_ID.fullmatch(given) else uuid.uuid4().hex,
            method=scope["method"],
            arrived=arrived,
            deadline=arrived + self.limits.deadline_seconds,
        )
        scope.setdefault("state", {})["record"] = record
        try:
            await self._answer(record, scope, receive, send)
        finally:
            record.outcome = record.outcome or INTERNAL_ERROR
            record.status = record.status or 500
            record.close()
            self._report(record, scope)

    async def _answer(self, record: RequestRecord, scope: Scope, receive: Receive, send: Send) -> None:
        is_complete = False

        async def send_in_time(message: Message) -> None:
            nonlocal is_complete
            if message["type"] == "http.response.start":
                record.status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = record.request_id
                headers["X-Model-Version"] = self.served_model.model_version
            seconds = min(self.limits.send_seconds, self.limits.send_seconds + record.seconds_left)
            try:
                async with asyncio.timeout(seconds):
                    await send(message)
            except TimeoutError:
                raise SlowReaderError from None
            is_complete = message["type"] == "http.response.body" and not message.get("more_body", False)

        try:
            await self.app(scope, receive, send_in_time)
        except SlowReaderError:
            record.outcome = SLOW_READER
        except ClientDisconnect:
            record.outcome = GONE
            if record.status is None:  # nobody reads it, but a server around us may wait for a response
                await Response(status_code=CLIENT_GONE)(scope, receive, send_in_time)
        if record.outcome is None:
            record.outcome = ANSWERED if is_complete else GONE

    def _report(self, record: RequestRecord, scope: Scope) -> None:
        record.route = _route(scope)
        logger.info(record.line())
        if self.served_model.loaded is not None:
            metrics = self.served_model.loaded.engine.metrics
            metrics.requests.labels(route=record.route, outcome=record.outcome).inc()
            if record.status in REFUSED:
                metrics.refused.labels(reason=record.outcome).inc()


class AdmissionMiddleware:
    """Rejects a POST before its body is read where no request would be taken.

    Args:
        check_room: Raises ApiError when no request would be taken now.
    """

    def __init__(self, app: ASGIApp, limits: Limits, check_room: Callable[[], None]) -> None:
        self.app = app
        self.limits = limits
        self.check_room = check_room
        self.num_open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        try:
            self._check()
        except ApiError as error:
            scope["state"]["record"].outcome = error.code
            await error.response()(scope, receive, send)
            return
        self.num_open += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.num_open -= 1

    def _check(self) -> None:
        self.check_room()
        if self.num_open >= self.limits.open_requests:
            message = f"at most {self.limits.open_requests} requests may be open"
            raise ApiError(429, message, code="too_many_requests", retry_after=RETRY_SECONDS)


def _route(scope: Scope) -> str:
    """The path of the route that has answered, without what its parameters held."""
    if scope["path"] in (CHAT_PATH, IMAGES_PATH):  # known even when it was rejected before routing
        return scope["path"]
    route = scope.get("route")
    return route.path if isinstance(route, Route) else OTHER_ROUTE
