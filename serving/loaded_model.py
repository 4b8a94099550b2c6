"""The loaded model as the HTTP API sees it, and whether the service has one yet."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from serving.engine import BrokenError, ClosedError, Engine, QueueFullError
from serving.errors import ApiError
from serving.job_stream import refusal

if TYPE_CHECKING:  # types alone: the HTTP API starts without waiting for torch
    from serving.request_builder import RequestBuilder
    from serving.thread_safe_processor import ThreadSafeProcessor

LOADING_RETRY_SECONDS = 2


@dataclass(frozen=True)
class ModelInfo:
    """What the service tells about its model."""

    id: str
    version: str
    created: int  # seconds since 1970
    image_size: int  # side of a drawn picture in pixels
    lineage: dict[str, Any]

    @property
    def body(self) -> dict[str, Any]:
        """The entry in /v1/models."""
        return {
            "id": self.id,
            "object": "model",
            "created": self.created,
            "owned_by": "vargpt",
            "version": self.version,
            "input_modalities": ["text", "image"],
            "output_modalities": ["text", "image"],
            "image_size": f"{self.image_size}x{self.image_size}",
            "lineage": self.lineage,
        }


@dataclass(frozen=True)
class LoadedModel:
    """A model that is loaded and warmed up, with the engine that runs it."""

    info: ModelInfo
    engine: Engine
    request_builder: RequestBuilder
    processor: ThreadSafeProcessor

    def check_name(self, asked: str | None) -> None:
        """Raises ApiError when a request names another model."""
        if asked is not None and asked != self.info.id:
            raise ApiError(
                404,
                f"the model {asked[:100]!r} does not exist; this service has {self.info.id!r}",
                param="model",
                code="model_not_found",
            )


class ServedModel:
    """Holds the model once it is loaded; until then, or after a failure to load, says so."""

    def __init__(self) -> None:
        self.loaded: LoadedModel | None = None
        self.failure: str | None = None

    @property
    def model_version(self) -> str:
        """For the header of every response."""
        return self.loaded.info.version if self.loaded else "none"

    @property
    def is_ready(self) -> bool:
        """Whether requests are taken."""
        return self.loaded is not None and self.loaded.engine.is_ready

    @property
    def is_alive(self) -> bool:
        """False when only a restart helps."""
        return self.failure is None if self.loaded is None else self.loaded.engine.is_alive

    def require(self) -> LoadedModel:
        """The model; an ApiError 503 when there is none."""
        if self.failure is not None:
            raise ApiError(503, f"the model could not be loaded: {self.failure}", code="model_failed")
        if self.loaded is None:
            raise ApiError(
                503, "the model is being loaded", code="model_loading", retry_after=LOADING_RETRY_SECONDS
            )
        return self.loaded

    def check_room(self) -> None:
        """Raises ApiError when no request would be taken now."""
        engine = self.require().engine
        try:
            engine.check_room()
        except (QueueFullError, ClosedError, BrokenError) as error:
            raise refusal(engine, error) from None


def unix_now() -> int:
    """Seconds since 1970, as OpenAI's `created` has them."""
    return int(time.time())
