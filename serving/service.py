"""BentoML service: reads the environment, loads the model beside the server, mounts the HTTP API."""

import asyncio
import importlib
import logging
import os
import threading
from pathlib import Path
from typing import Any

import bentoml

from serving import request_log
from serving.app import create_app
from serving.config import Limits
from serving.loaded_model import ServedModel
from serving.metrics import without_own
from serving.packaging import NAME, WEIGHTS

logger = logging.getLogger(__name__)

LIMITS = Limits.from_environment(os.environ)
SERVED_MODEL = ServedModel()
TRAFFIC_MARGIN_SECONDS = 30.0  # our own deadline answers first, in our own shape


@bentoml.asgi_app(create_app(SERVED_MODEL, LIMITS), path="/")
@bentoml.service(
    name=NAME,
    workers=1,  # one process owns the device; more replicas, not more workers
    traffic={"timeout": LIMITS.deadline_seconds + LIMITS.body_seconds + TRAFFIC_MARGIN_SECONDS},
    # The request log has a line for each request; these paths are not counted as requests either.
    logging={"access": {"enabled": False, "skip_paths": ["/metrics", "/healthz", "/livez", "/readyz"]}},
)
class VargptService:
    """Answers chats with text and pictures; POST /v1/chat/completions and /v1/images/generations."""

    def __init__(self) -> None:
        logging.getLogger("serving").setLevel(logging.INFO)
        request_log.log_to_stdout()
        loading = threading.Thread(target=self._load, name="vargpt-loading", daemon=True)
        loading.start()

    def _load(self) -> None:
        try:
            # Imported here, by the one process that runs the model: BentoML's supervisor imports this module
            # as well, just to read its settings, and would wait for torch.
            load_model_for_serving = importlib.import_module("serving.loading").load_model_for_serving
            folder, facts = _find_model(os.environ.get("VARGPT_MODEL"))
            SERVED_MODEL.loaded = load_model_for_serving(
                folder,
                LIMITS,
                facts=facts,
                device=os.environ.get("VARGPT_DEVICE"),
                dtype=os.environ.get("VARGPT_DTYPE"),
                warms_up=os.environ.get("VARGPT_WARM_UP", "1") != "0",
            )
        except Exception as error:  # the border of the thread: the reason must reach log, clients and probes
            logger.exception("the model could not be loaded")
            SERVED_MODEL.failure = str(error) or type(error).__name__

    async def __is_ready__(self) -> bool:
        return SERVED_MODEL.is_ready

    async def __is_alive__(self) -> bool:
        return SERVED_MODEL.is_alive

    def __metrics__(self, text: str) -> str:
        return (
            text
            if SERVED_MODEL.loaded is None
            else without_own(text) + SERVED_MODEL.loaded.engine.metrics.render()
        )

    @bentoml.on_shutdown
    async def _drain(self) -> None:
        if SERVED_MODEL.loaded is not None:
            await asyncio.to_thread(SERVED_MODEL.loaded.engine.drain, LIMITS.deadline_seconds)


def _find_model(named: str | None) -> tuple[Path, dict[str, Any]]:
    """Folder of the weights, and what the bento knows: the named one, the bento's, or the store's newest."""
    if named:
        return Path(named), {}
    bento = VargptService.bento
    if bento is None:
        return Path(bentoml.models.get(NAME).path) / WEIGHTS, {}
    stored = bentoml.models.get(bento.info.all_models[0].tag)
    return Path(stored.path) / WEIGHTS, {"bento_tag": str(bento.tag)}
