"""Real parts for the tests of serving: a tiny model with random weights, an engine to be held, an ear."""

import contextlib
import dataclasses
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from starlette.testclient import TestClient

from model.checkpoint import save_model
from model.config import preset
from model.generation.generate import Reply, Request
from model.manifest import LINEAGE, manifest_sha256
from model.modeling import VargptForConditionalGeneration
from model.processing import VargptProcessor
from model.text_tokenizer import build_text_tokenizer
from serving.app import create_app
from serving.config import Limits
from serving.engine import Engine
from serving.loaded_model import LoadedModel, ModelSlot

torch.set_num_threads(1)

CHAT = "/v1/chat/completions"
DRAW = "/v1/images/generations"
HELLO = [{"role": "user", "content": "Draw a red seven on white."}]
SHORT = {"messages": HELLO, "max_tokens": 6, "seed": 5}
PICTURE = Image.effect_noise((40, 30), 60).convert("RGB")
TEXTS = [
    "Draw a red seven on white.",
    "Here is a red seven on a white background.",
    "Which digit is this?",
    "Seven.",
]


class Gate:
    """Lets a test hold the real model between two batches."""

    def __init__(self, generate: Callable[..., list[Reply]]) -> None:
        self._generate = generate
        self._is_open = threading.Event()
        self.batches: list[Sequence[Request]] = []

    def __call__(self, requests: Sequence[Request], **callbacks: Any) -> list[Reply]:
        self.batches.append(requests)
        self._is_open.wait(30)
        return self._generate(requests, **callbacks)

    def open(self) -> None:
        self._is_open.set()


class RecordingListener:
    """Hears everything that an engine tells about one job."""

    def __init__(self) -> None:
        self.updates: list[tuple[int, Any]] = []

    def __call__(self, index: int, updates: Any) -> None:
        self.updates.append((index, updates))

    def last(self, index: int = 0) -> Any:
        """The last updates of a choice that is a reply or a failure, or None."""
        ends = [
            n for i, n in self.updates if i == index and (isinstance(n, Exception) or hasattr(n, "reply"))
        ]
        return ends[-1] if ends else None


def save_random_model(folder: Path) -> None:
    """Publishes random weights with a lineage record beside them."""
    torch.manual_seed(0)
    config = preset("tiny")
    tokenizer = build_text_tokenizer(TEXTS * 4, config)
    processor = VargptProcessor.for_config(config, tokenizer, system_prompt="")
    save_model(VargptForConditionalGeneration(config).eval(), processor, folder)
    record = {"data_md5": "0123.dir", "git_commit": "abc", "weights_sha256": manifest_sha256(folder)}
    (folder / LINEAGE).write_text(json.dumps({**record, "model_version": "7"}))


@contextlib.contextmanager
def client_of(backend: LoadedModel | None, limits: Limits | None = None) -> Iterator[TestClient]:
    """A client of a new HTTP face."""
    slot = ModelSlot()
    slot.backend = backend
    app = create_app(slot, limits or (backend.engine.limits if backend else Limits()))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


@contextlib.contextmanager
def gated(backend: LoadedModel, **limits: float) -> Iterator[tuple[Gate, LoadedModel]]:
    """The same model behind another engine that stands still until its gate is opened."""
    gate = Gate(backend.engine.generate)
    engine = Engine(gate, dataclasses.replace(Limits(), **limits))
    engine.start()
    try:
        yield gate, dataclasses.replace(backend, engine=engine)
    finally:
        gate.open()
        engine.drain(10)


def asking(**fields: Any) -> dict[str, Any]:
    return {**SHORT, **fields}


def shown(*urls: str, text: str = "Which digit is this?") -> list[dict[str, Any]]:
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def events_of(face: TestClient, body: dict[str, Any]) -> list[Any]:
    """The events of a stream; the last is the word that ends it."""
    response = face.post(CHAT, json={**body, "stream": True})
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in response.text.split("\n\n") if line and not line.startswith(":")]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
