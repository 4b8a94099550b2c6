"""The HTTP face: routes in OpenAI's shapes over a slot that holds the model."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from serving.chat import answer_chat, answer_images
from serving.config import Limits
from serving.errors import ApiError, from_validation
from serving.loaded_model import ModelSlot
from serving.middleware import BodyMiddleware, IdentityMiddleware
from serving.schemas import ChatRequest, ImagesRequest

ALL_METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"]
DESCRIPTION = "Text and pictures in one conversation, in the shapes of OpenAI's API."


def create_app(slot: ModelSlot, limits: Limits) -> FastAPI:
    """The routes under /v1; every failure has the shape {"error": {message, type, param, code}}."""
    app = FastAPI(
        title="vargpt",
        description=DESCRIPTION,
        openapi_url="/v1/openapi.json",
        docs_url=None,  # the page would load its scripts from the network
        redoc_url=None,
    )
    app.add_middleware(BodyMiddleware, limits=limits, check_room=slot.check_room)
    app.add_middleware(IdentityMiddleware, model_version=lambda: slot.model_version)
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(Exception, _on_fault)
    _add_routes(app, slot)
    return app


def _add_routes(app: FastAPI, slot: ModelSlot) -> None:
    @app.post("/v1/chat/completions", response_model=None)
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        """Answers a conversation with text, pictures, or both."""
        return await answer_chat(slot.require(), body, request)

    @app.post("/v1/images/generations", response_model=None)
    async def images_generations(body: ImagesRequest, request: Request) -> Response:
        """Draws pictures of a prompt."""
        return await answer_images(slot.require(), body, request)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The one model of this service, with its version and lineage."""
        return {"object": "list", "data": [slot.require().card.body]}

    @app.get("/v1/models/{model_id}")
    async def model(model_id: str) -> dict[str, Any]:
        """The same as an object by itself."""
        backend = slot.require()
        backend.check_model(model_id)
        return backend.card.body

    known = {route.path: sorted(route.methods) for route in app.routes if route.path.startswith("/v1/")}

    @app.api_route("/v1/{path:path}", methods=ALL_METHODS, include_in_schema=False)
    async def unknown(path: str, request: Request) -> Response:
        """Without this route the server around us would answer, in another shape."""
        if methods := known.get(request.url.path):
            error = ApiError(405, f"{request.url.path} takes {', '.join(methods)}", code="method_not_allowed")
            response = error.response()
            response.headers["Allow"] = ", ".join(methods)
            return response
        return ApiError(404, f"{request.url.path[:200]} does not exist", code="not_found").response()


async def _on_api_error(request: Request, error: ApiError) -> JSONResponse:
    return error.response()


async def _on_validation_error(request: Request, error: RequestValidationError) -> JSONResponse:
    return from_validation(error.errors()[0]).response()


async def _on_http_exception(request: Request, error: HTTPException) -> JSONResponse:
    return ApiError(error.status_code, str(error.detail), code="http_error").response()


async def _on_fault(request: Request, error: Exception) -> JSONResponse:
    # This handler runs outside of all middleware, so the identity header is put on here.
    response = ApiError(500, "the service failed on this request", code="internal_error").response()
    response.headers["X-Request-Id"] = getattr(request.state, "request_id", "")
    return response
