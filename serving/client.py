"""HTTP client of the service, and a context manager that runs a service as a local process."""

import base64
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx

from model.errors import UserError
from serving.config import Limits
from serving.packaging import SERVICE

READY_SECONDS = 300.0
STOP_SECONDS = 30.0
# What was begun before a stop ends within the limits; a client that does not read cannot put it off for ever.
GRACEFUL_SECONDS = int(Limits().deadline_seconds + Limits().send_seconds)
LOG_CHARACTERS = 2000
_BENTOML = (sys.executable, "-m", "bentoml", "serve")
_NO_REPORTS = ("env", "BENTOML_DO_NOT_TRACK=True")
MEDIA_TYPES = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}


@dataclass(frozen=True)
class Answer:
    """A reply: its text, its pictures as PNG files, and the model version that gave it."""

    text: str
    pictures: tuple[bytes, ...]
    model_version: str
    request_id: str
    body: dict[str, Any] = field(repr=False)

    def save(self, out: Path) -> list[Path]:
        """Writes the pictures to OUT, OUT-2, OUT-3 ... and returns where they lie."""
        names = [out, *(out.with_stem(f"{out.stem}-{number}") for number in range(2, len(self.pictures) + 1))]
        paths = names[: len(self.pictures)]
        for path, picture in zip(paths, self.pictures, strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture)
        return paths


def chat(
    url: str, prompt: str, images: Sequence[Path] = (), *, timeout: float = 300.0, **options: Any
) -> Answer:
    """Asks one question; `options` are further fields of the request, such as seed."""
    parts = [{"type": "image_url", "image_url": {"url": data_url(path)}} for path in images]
    content = [*parts, {"type": "text", "text": prompt}]
    request = {"messages": [{"role": "user", "content": content}], "modalities": ["text", "image"], **options}
    try:
        response = httpx.post(f"{url.rstrip('/')}/v1/chat/completions", json=request, timeout=timeout)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise UserError(f"no answer from {url}: {error}") from None
    if response.is_error:
        raise UserError(f"{url} answered {response.status_code}: {_reason(response)}")
    body = response.json()
    message = body["choices"][0]["message"]
    return Answer(
        text=message["content"],
        pictures=tuple(_png(image["image_url"]["url"]) for image in message.get("images", ())),
        model_version=response.headers.get("X-Model-Version", ""),
        request_id=response.headers.get("X-Request-Id", ""),
        body=body,
    )


def data_url(path: Path) -> str:
    """A picture file as a data URL."""
    media_type = MEDIA_TYPES.get(path.suffix.lower())
    if media_type is None:
        raise UserError(f"image must be one of {', '.join(MEDIA_TYPES)}, got {path}")
    if not path.is_file():
        raise UserError(f"image {path} does not exist")
    return f"data:image/{media_type};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"


def is_ready(url: str, timeout: float = 1.0) -> bool:
    """Whether a service of ours answers there and has its model."""
    try:
        response = httpx.get(f"{url.rstrip('/')}/v1/models", timeout=timeout)
    except (httpx.HTTPError, httpx.InvalidURL):
        return False
    return response.is_success and "x-model-version" in response.headers


def serve_command(target: str | Path, host: str, port: int) -> list[str]:
    """The command that serves a bento (a tag) or a published model (a folder) with this code."""
    options = ["--host", host, "--port", str(port), "--timeout-graceful-shutdown", str(GRACEFUL_SECONDS)]
    if not isinstance(target, Path):
        return [*_NO_REPORTS, *_BENTOML, target, *options]
    model = f"VARGPT_MODEL={target.resolve()}"
    root = str(Path(__file__).resolve().parent.parent)
    return [*_NO_REPORTS, model, *_BENTOML, SERVICE, "--working-dir", root, *options]


def newest_model(root: Path = Path(".")) -> Path | None:
    """The published model that was written last, trained here or pulled by DVC."""
    patterns = ("outputs/*/model/manifest.json", "artifacts/model/manifest.json")
    folders = [path.parent for pattern in patterns for path in root.glob(pattern)]
    return max(folders, key=lambda folder: (folder / "manifest.json").stat().st_mtime, default=None)


def newest_bento(name: str = "vargpt") -> str | None:
    """The tag of the bento that was built last."""
    import bentoml
    from bentoml.exceptions import NotFound

    try:
        return str(bentoml.bentos.get(f"{name}:latest").tag)
    except NotFound:
        return None


def find_target() -> str | Path:
    """What to serve when nothing is named: the newest bento, else the newest published model."""
    target = newest_bento() or newest_model()
    if target is None:
        raise UserError(
            "nothing to serve: no bento named vargpt (vargpt package), no outputs/*/model, no artifacts/model"
        )
    return target


class Server:
    """Process that serves a bento or a published model on a free local port during a `with` block."""

    def __init__(self, target: str | Path, ready_seconds: float = READY_SECONDS) -> None:
        self.target = target
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._ready_seconds = ready_seconds

    def __enter__(self) -> Self:
        self._log = tempfile.TemporaryFile()
        command = serve_command(self.target, "127.0.0.1", self.port)
        self.process = subprocess.Popen(command, stdout=self._log, stderr=self._log)
        fault = self._wait_until_ready()
        if fault is None:
            return self
        log = self.log()
        self.__exit__()
        raise UserError(f"the service of {self.target} {fault}\n{log[-LOG_CHARACTERS:]}")

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._log.close()

    def log(self) -> str:
        """Everything that the process has written so far."""
        file = self._log.fileno()
        # Not read(): the process writes where this file's position is.
        return os.pread(file, os.fstat(file).st_size, 0).decode(errors="replace")

    def _wait_until_ready(self) -> str | None:
        """None when ready, else what is wrong."""
        deadline = time.monotonic() + self._ready_seconds
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                return f"ended with exit code {self.process.returncode}"
            with contextlib.suppress(httpx.HTTPError):
                response = httpx.get(f"{self.url}/v1/models", timeout=5.0)
                if response.is_success:
                    return None
                if "model_failed" in response.text:
                    return f"could not load its model: {_reason(response)}"
            time.sleep(0.1)
        return f"was not ready within {self._ready_seconds:g} seconds"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _png(url: str) -> bytes:
    return base64.b64decode(url.partition(",")[2])


def _reason(response: httpx.Response) -> str:
    try:
        return response.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return response.text[:500]
