"""HTTP requests made to an ASGI application without a server between, by clients that may behave badly."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp

from tests.serving.parts import CHAT, json_bytes


class AsgiCall:
    """One request made to an application without a server between, by a client that may behave badly.

    Args:
        chunks: The body, as it comes from the network.
        chunk_seconds: Time before each of its chunks.
        reads: So many messages of the response are read; the next send waits for ever. None reads all.
        read_seconds: Time that reading a message takes.
    """

    def __init__(
        self,
        chunks: Iterator[bytes],
        *,
        path: str = CHAT,
        headers: Sequence[tuple[bytes, bytes]] = (),
        chunk_seconds: float = 0.0,
        reads: int | None = None,
        read_seconds: float = 0.0,
    ) -> None:
        self._chunks = chunks
        self._chunk_seconds = chunk_seconds
        self._reads = reads
        self._read_seconds = read_seconds
        self.messages: list[dict[str, Any]] = []
        self.gone = asyncio.Event()
        self._is_read = False
        self.scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(b"content-type", b"application/json"), *headers],
            "server": ("test", 80),
        }

    async def __call__(self, app: ASGIApp) -> None:
        await app(self.scope, self._receive, self._send)

    @property
    def is_read(self) -> bool:
        """Whether the application waits for more than has come."""
        return self._is_read

    def header(self, name: str) -> str | None:
        return Headers(raw=self.messages[0]["headers"]).get(name)

    @property
    def status(self) -> int | None:
        return self.messages[0]["status"] if self.messages else None

    @property
    def body(self) -> Any:
        return json.loads(b"".join(message.get("body", b"") for message in self.messages[1:]))

    async def _receive(self) -> dict[str, Any]:
        chunk = next(self._chunks, None)
        if chunk is None:
            self._is_read = True
            await self.gone.wait()
            return {"type": "http.disconnect"}
        await asyncio.sleep(self._chunk_seconds)
        return {"type": "http.request", "body": chunk, "more_body": chunk != b""}

    async def _send(self, message: dict[str, Any]) -> None:
        if self._reads is not None and len(self.messages) >= self._reads:
            await asyncio.Event().wait()
        await asyncio.sleep(self._read_seconds)
        self.messages.append(message)


def chunks_of(body: Any) -> Iterator[bytes]:
    """A JSON body as it comes from the network."""
    yield bytes(json_bytes(body))
    yield b""


async def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Waits on the event loop until something is true."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def in_background(call: AsgiCall, app: ASGIApp) -> AsyncIterator[asyncio.Task[None]]:
    """A call that goes on during the block."""
    task = asyncio.ensure_future(call(app))
    try:
        yield task
    finally:
        call.gone.set()
        await asyncio.wait((task,), timeout=30)
