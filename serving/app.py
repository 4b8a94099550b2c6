"""FastAPI application: the routes under /v1 in OpenAI's shapes, and a page at /."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import Receive, Scope, Send

from serving.config import Limits
from serving.errors import ApiError
from serving.handlers import answer_chat, answer_images
from serving.home_page import home_page
from serving.loaded_model import ServedModel
from serving.middleware import CHAT_PATH, IMAGES_PATH, AdmissionMiddleware, RequestLogMiddleware
from serving.openapi import POST_ERRORS, add_request_schemas, errors, json_body
from serving.request_body import BodyReader
from serving.request_log import record_of
from serving.schemas import ChatRequest, ImagesRequest

DESCRIPTION = "Text and pictures in one conversation, in the shapes of OpenAI's API."
ERROR_CODES = {404: "not_found", 405: "method_not_allowed"}


class VargptApi(FastAPI):
    """FastAPI, with a document that knows the bodies which the routes read themselves."""

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document."""
        if self.openapi_schema is None:
            add_request_schemas(super().openapi())
        assert self.openapi_schema is not None
        return self.openapi_schema


def create_app(served_model: ServedModel, limits: Limits) -> FastAPI:
    """The application; every failure has the shape {"error": {message, type, param, code}}."""
    app = VargptApi(
        title="vargpt",
        description=DESCRIPTION,
        openapi_url="/v1/openapi.json",
        docs_url=None,  # the page would load its scripts from the network
        redoc_url=None,
        redirect_slashes=False,
    )
    app.add_middleware(AdmissionMiddleware, limits=limits, check_room=served_model.check_room)
    app.add_middleware(RequestLogMiddleware, limits=limits, served_model=served_model)
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(Exception, _on_fault)
    app.add_route("/", home_page, methods=["GET"], include_in_schema=False)
    _add_post_routes(app, served_model, BodyReader(limits))
    _add_get_routes(app, served_model)
    # Without these the server around us would answer, in another shape.
    for path in ("/v1", "/v1/{path:path}"):
        app.add_route(path, _UnknownRoute(app), include_in_schema=False)
    return app


def _add_post_routes(app: FastAPI, served_model: ServedModel, bodies: BodyReader) -> None:
    @app.post(
        CHAT_PATH,
        response_model=None,
        responses=errors(*POST_ERRORS),
        openapi_extra=json_body(ChatRequest),
    )
    async def chat_completions(request: Request) -> Response:
        """Answers a conversation with text, pictures, or both."""
        return await answer_chat(served_model.require(), bodies, request)

    @app.post(
        IMAGES_PATH,
        response_model=None,
        responses=errors(*POST_ERRORS),
        openapi_extra=json_body(ImagesRequest),
    )
    async def images_generations(request: Request) -> Response:
        """Draws pictures of a prompt."""
        return await answer_images(served_model.require(), bodies, request)


def _add_get_routes(app: FastAPI, served_model: ServedModel) -> None:
    @app.get("/v1/models", responses=errors())
    async def models() -> dict[str, Any]:
        """The one model of this service, with its version and lineage."""
        return {"object": "list", "data": [served_model.require().info.body]}

    @app.get("/v1/models/{model_id}", responses=errors(404))
    async def model(model_id: str) -> dict[str, Any]:
        """The same as an object by itself."""
        loaded = served_model.require()
        loaded.check_name(model_id)
        return loaded.info.body


class _UnknownRoute:
    """Answers what no route takes: 405 where one would with another method, else 404."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, allowed = scope["path"], set()
        for route in self._app.routes:
            if route.matches(scope)[0] is not Match.NONE:
                allowed |= getattr(route, "methods", None) or set()
        if allowed:
            methods = ", ".join(sorted(allowed))
            raise ApiError(
                405, f"{path[:200]} takes {methods}", code=ERROR_CODES[405], headers={"Allow": methods}
            )
        raise ApiError(404, f"{path[:200]} does not exist", code=ERROR_CODES[404])


async def _on_api_error(request: Request, error: ApiError) -> JSONResponse:
    record_of(request).outcome = error.code
    return error.response()


async def _on_http_exception(request: Request, error: HTTPException) -> JSONResponse:
    code = ERROR_CODES.get(error.status_code, "http_error")
    return await _on_api_error(
        request, ApiError(error.status_code, str(error.detail), code=code, headers=error.headers)
    )


async def _on_fault(request: Request, error: Exception) -> JSONResponse:
    # This handler runs outside of all middleware, so the identity header is put on here.
    response = ApiError(500, "the service failed on this request", code="internal_error").response()
    response.headers["X-Request-Id"] = record_of(request).request_id
    return response
