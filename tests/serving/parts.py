"""Helpers for the tests of serving: a tiny model with random weights, an engine that can be held, clients."""

import contextlib
import dataclasses
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from starlette.testclient import TestClient
from starlette.types import ASGIApp

from model.checkpoint import save_model
from model.config import preset
from model.generation.generate import Event, Reply, Request
from model.generation.sampling import SamplingParams
from model.manifest import LINEAGE, manifest_sha256
from model.modeling import VargptForConditionalGeneration
from model.processing import VargptProcessor
from model.text_tokenizer import IMAGE_END, IMAGE_START, build_text_tokenizer
from serving.app import create_app
from serving.config import Limits
from serving.engine import Engine
from serving.jobs import JobOptions
from serving.loaded_model import LoadedModel, ServedModel
from serving.request_builder import RequestBuilder
from serving.thread_safe_processor import ThreadSafeProcessor

torch.set_num_threads(1)

CHAT = "/v1/chat/completions"
DRAW = "/v1/images/generations"
HELLO = [{"role": "user", "content": "Draw a red seven on white."}]
SHORT = {"messages": HELLO, "max_tokens": 6, "seed": 5}
WORD = 40  # the id of an ordinary token: a printable character
PICTURE = Image.effect_noise((40, 30), 60).convert("RGB")
TEXTS = [
    "Draw a red seven on white.",
    "Here is a red seven on a white background.",
    "Which digit is this?",
    "Seven.",
]


class HeldGenerate:
    """The model's `generate`, whose batches wait until a test releases them; counts events per request."""

    def __init__(self, generate: Callable[..., list[Reply]]) -> None:
        self._generate = generate
        self._is_released = threading.Event()
        self.batches: list[Sequence[Request]] = []
        self.replies: list[Reply] = []

    def __call__(self, requests: Sequence[Request], **callbacks: Any) -> list[Reply]:
        self.batches.append(requests)
        self._is_released.wait(30)
        replies = self._generate(requests, **callbacks)
        self.replies += replies
        return replies

    def release(self) -> None:
        self._is_released.set()


class RecordingListener:
    """Listener of a job that keeps every update."""

    def __init__(self) -> None:
        self.updates: list[tuple[int, Any]] = []

    def __call__(self, index: int, update: Any) -> None:
        self.updates.append((index, update))

    def last(self, index: int = 0) -> Any:
        """The update that ended a choice, a reply or a failure; None while it goes on."""
        ends = [
            update
            for i, update in self.updates
            if i == index and (isinstance(update, Exception) or hasattr(update, "reply"))
        ]
        return ends[-1] if ends else None


class ScriptedGenerate:
    """A `generate` that says given tokens and counts its steps, asking before each whether to stop."""

    def __init__(self, token_ids: Sequence[int], step_seconds: float = 0.0) -> None:
        self._token_ids = token_ids
        self._step_seconds = step_seconds
        self.num_steps = 0

    def __call__(
        self,
        requests: Sequence[Request],
        on_event: Callable[[Event], None],
        should_stop: Callable[[int], bool],
    ) -> list[Reply]:
        said: list[list[int]] = [[] for _ in requests]
        reasons = ["stop"] * len(requests)
        for token_id in self._token_ids:
            for index in range(len(requests)):
                if reasons[index] == "cancelled" or should_stop(index):
                    reasons[index] = "cancelled"
                    continue
                said[index].append(token_id)
                on_event(Event(index, "token", token_id=token_id))
            if all(reason == "cancelled" for reason in reasons):
                break
            self.num_steps += 1
            time.sleep(self._step_seconds)
        lengths = [len(request.input_ids) for request in requests]
        return [
            Reply(ids, [], reason, length, 0)
            for ids, reason, length in zip(said, reasons, lengths, strict=True)
        ]


class HeldProcessor:
    """A processor whose prompts wait until a test releases them; notes in which threads it is used."""

    def __init__(self, processor: ThreadSafeProcessor) -> None:
        self._processor = processor
        self._is_released = threading.Event()
        self.is_waiting = False
        self.threads: set[int] = set()

    def request(self, *args: Any, **fields: Any) -> Request:
        self.threads.add(threading.get_ident())
        self.is_waiting = True
        self._is_released.wait(30)
        self.is_waiting = False
        return self._processor.request(*args, **fields)

    def parts(self, *args: Any) -> list[Any]:
        self.threads.add(threading.get_ident())
        return self._processor.parts(*args)

    def text(self, *args: Any) -> str:
        return self._processor.text(*args)

    def release(self) -> None:
        self._is_released.set()

    def hold(self) -> None:
        self._is_released.clear()


def with_processor(model: LoadedModel, processor: HeldProcessor) -> LoadedModel:
    """The same model with another processor before and after it."""
    config = preset("tiny")
    builder = RequestBuilder(
        processor,
        model.engine.limits,
        image_size=config.image_size,
        num_image_tokens=config.num_image_tokens,
        context=config.text_config.max_position_embeddings,
    )
    return dataclasses.replace(model, processor=processor, request_builder=builder)


def save_random_model(folder: Path) -> None:
    """Publishes random weights with a lineage record beside them."""
    torch.manual_seed(0)
    config = preset("tiny")
    tokenizer = build_text_tokenizer(TEXTS * 4, config)
    processor = VargptProcessor.for_config(config, tokenizer, system_prompt="")
    save_model(VargptForConditionalGeneration(config).eval(), processor, folder)
    record = {"data_md5": "0123.dir", "git_commit": "abc", "weights_sha256": manifest_sha256(folder)}
    (folder / LINEAGE).write_text(json.dumps({**record, "model_version": "7"}))


def new_app(model: LoadedModel | None, limits: Limits | None = None) -> ASGIApp:
    """A new application, with the limits of the model's engine where none are given."""
    served_model = ServedModel()
    served_model.loaded = model
    return create_app(served_model, limits or (model.engine.limits if model else Limits()))


@contextlib.contextmanager
def http_client(model: LoadedModel | None, limits: Limits | None = None) -> Iterator[TestClient]:
    """A client of a new application."""
    with TestClient(new_app(model, limits), raise_server_exceptions=False) as client:
        yield client


@contextlib.contextmanager
def held(model: LoadedModel, **limits: float) -> Iterator[tuple[HeldGenerate, LoadedModel]]:
    """The same model behind another engine, whose batches wait until they are released."""
    generate = HeldGenerate(model.engine.generate)
    with running(model, generate, **limits) as other:
        try:
            yield generate, other
        finally:
            generate.release()


@contextlib.contextmanager
def running(
    model: LoadedModel, generate: Callable[..., list[Reply]], is_fatal: Any = None, **limits: float
) -> Iterator[LoadedModel]:
    """The same model behind another engine with this `generate`."""
    engine = Engine(generate, dataclasses.replace(Limits(), **limits), is_fatal or (lambda error: False))
    engine.start()
    try:
        yield dataclasses.replace(model, engine=engine)
    finally:
        engine.drain(10)


def prompt(model: LoadedModel, text: str = "Draw a red seven on white.", **params: object) -> Request:
    """A request to the model itself."""
    force_image = bool(params.pop("force_image", False))
    wanted = SamplingParams(**{"max_new_tokens": 8, **params})
    messages = [{"role": "user", "content": text}]
    return model.request_builder.build(messages, wanted, force_image=force_image)


def job_options(model: LoadedModel, **fields: Any) -> JobOptions:
    now = time.monotonic()
    deadline = now + model.engine.limits.deadline_seconds
    return JobOptions(**{"request_id": "test", "arrived": now, "deadline": deadline, **fields})


def json_bytes(body: Any) -> bytearray:
    return bytearray(json.dumps(body).encode())


def played(loaded_model: LoadedModel, script: str) -> tuple[list[Event], Reply]:
    """The events and the reply of a model that would say this."""
    tokenizer = loaded_model.processor.tokenizer
    start, end = tokenizer.convert_tokens_to_ids([IMAGE_START, IMAGE_END])
    events, images = [], []
    for number, text in enumerate(script.split("<image>")):
        if number:
            images.append(torch.rand(3, 32, 32))
            events += [Event(0, "token", start), Event(0, "scale", scale=0)]
            events += [Event(0, "image", image=images[-1]), Event(0, "token", end)]
        events += [Event(0, "token", token) for token in tokenizer.encode(text, add_special_tokens=False)]
    token_ids = [event.token_id for event in events if event.type == "token"]
    return events, Reply(token_ids, images, "stop", 5, 30 * len(images))


def asking(**fields: Any) -> dict[str, Any]:
    return {**SHORT, **fields}


def shown(*urls: str, text: str = "Which digit is this?") -> list[dict[str, Any]]:
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def events_of(http: TestClient, body: dict[str, Any]) -> list[Any]:
    """The events of a stream, less the word that ends it."""
    response = http.post(CHAT, json={**body, "stream": True})
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in response.text.split("\n\n") if line and not line.startswith(":")]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
