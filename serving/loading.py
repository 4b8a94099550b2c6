"""Loading of a published model for serving: verify, load, start the engine, warm up."""

import functools
import json
import logging
import threading
import time
from pathlib import Path
from typing import Any

import torch

from model.checkpoint import load_model
from model.cpu_kernels import multiplies_bfloat16, widen_linear_maps
from model.errors import UserError
from model.generation.generate import Request, generate
from model.generation.sampling import SamplingParams
from model.manifest import LINEAGE, MANIFEST, manifest_sha256, verify
from serving.config import Limits
from serving.device_errors import is_fatal
from serving.engine import Engine
from serving.jobs import Finished, JobOptions
from serving.loaded_model import LoadedModel, ModelInfo
from serving.packaging import NAME
from serving.request_builder import RequestBuilder
from serving.thread_safe_processor import ThreadSafeProcessor

logger = logging.getLogger(__name__)

UNREGISTERED = "unregistered"
WARM_UP_SECONDS = 600.0


def load_model_for_serving(
    folder: Path,
    limits: Limits,
    *,
    facts: dict[str, Any] | None = None,
    device: str | None = None,
    dtype: str | None = None,
    warms_up: bool = True,
) -> LoadedModel:
    """Loads a published model and answers a first request with it.

    On a CPU, weights in the type that they are stored in are mapped from the disk, not read into memory.

    Args:
        facts: What the caller knows of the origin beyond the record beside the weights.
        device: As torch names it; by default the first GPU, or the CPU when there is none.
        dtype: Name of a torch dtype; by default as saved.
        warms_up: Whether to draw and write before the first client asks, which takes minutes on a CPU at 7b.
    """
    started = time.monotonic()
    folder = Path(folder)
    verify(folder)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    model, processor = load_model(folder, dtype=_torch_dtype(dtype), device=device)
    model.eval()
    if device == "cpu" and not multiplies_bfloat16():
        widen_linear_maps(model)
    info = _model_info(folder, model.config.image_size, facts or {})
    engine = Engine(functools.partial(generate, model), limits, is_fatal)
    engine.start()
    shared_processor = ThreadSafeProcessor(processor, num_writers=limits.preparing_requests)
    request_builder = RequestBuilder(
        shared_processor,
        limits,
        image_size=model.config.image_size,
        num_image_tokens=model.config.num_image_tokens,
        context=model.config.text_config.max_position_embeddings,
    )
    if warms_up:
        warm_up(engine, request_builder)
    logger.info("model %s ready on %s in %.1f s", info.version, device, time.monotonic() - started)
    return LoadedModel(info, engine, request_builder, shared_processor)


def warm_up(engine: Engine, request_builder: RequestBuilder) -> None:
    """Writes some text and draws one picture, so that the first client does not wait for compilation."""
    params = SamplingParams(max_new_tokens=2, max_images=1)
    messages = [{"role": "user", "content": "Draw a picture."}]
    text = request_builder.build(messages, params)
    picture = request_builder.build(messages, params, force_image=True)
    _run([text, picture], engine)


def _run(requests: list[Request], engine: Engine) -> None:
    done = threading.Event()
    failures: list[Exception] = []
    remaining = set(range(len(requests)))

    def listen(index: int, update: object) -> None:
        if isinstance(update, Exception):
            failures.append(update)
        if isinstance(update, Exception | Finished):
            remaining.discard(index)
        if not remaining:
            done.set()

    now = time.monotonic()
    options = JobOptions(request_id="warm-up", arrived=now, deadline=now + WARM_UP_SECONDS)
    engine.submit(requests, listen, options)
    if not done.wait(WARM_UP_SECONDS):
        raise UserError(f"the model did not answer within {WARM_UP_SECONDS:g} seconds")
    if failures:
        raise failures[0]


def _model_info(folder: Path, image_size: int, facts: dict[str, Any]) -> ModelInfo:
    path = folder / LINEAGE
    record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    lineage = {**record, **facts, "weights_sha256": manifest_sha256(folder)}
    return ModelInfo(
        id=NAME,
        version=str(lineage.get("model_version") or UNREGISTERED),
        created=int((folder / MANIFEST).stat().st_mtime),
        image_size=image_size,
        lineage=lineage,
    )


def _torch_dtype(name: str | None) -> torch.dtype | None:
    if name is None:
        return None
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise UserError(f"VARGPT_DTYPE must name a torch dtype such as bfloat16, got {name!r}")
    return dtype
