"""What the OpenAPI document says beyond the routes themselves: request bodies and errors."""

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from serving.schemas import ChatRequest, ImagesRequest

SCHEMAS = "#/components/schemas/"


class ErrorDetails(BaseModel):
    """What went wrong, and which field of the request is at fault."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(BaseModel):
    """The body of every response that is not a success."""

    error: ErrorDetails


COMMON_ERRORS = {
    405: "The route takes another method; Allow says which",
    500: "The model or the service failed",
    503: "The model is loading, has failed, or the service is shutting down",
}
POST_ERRORS = {
    400: "The request is wrong; param names the field",
    404: "No such model",
    408: "The body did not arrive in time",
    413: "The body or a picture is over its limit",
    429: "No room for the request; Retry-After says when to come back",
    504: "No complete answer before the deadline",
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that may fail so; 405, 500 and 503 are always among them."""
    known = {**COMMON_ERRORS, **POST_ERRORS}
    chosen = sorted({*COMMON_ERRORS, *statuses})
    # Named `default` as well, for otherwise FastAPI documents an error of its own, which never comes.
    return {
        **{status: {"model": ErrorBody, "description": known[status]} for status in chosen},
        "default": {"model": ErrorBody, "description": "Any other error"},
    }


def json_body(schema: type[BaseModel]) -> dict[str, Any]:
    """The `openapi_extra` of a route that reads its body itself."""
    content = {"application/json": {"schema": {"$ref": SCHEMAS + schema.__name__}}}
    return {"requestBody": {"required": True, "content": content}}


def add_request_schemas(document: dict[str, Any]) -> dict[str, Any]:
    """The document with the schemas to which `json_body` refers."""
    models = [(schema, "validation") for schema in (ChatRequest, ImagesRequest)]
    _, definitions = models_json_schema(models, ref_template=SCHEMAS + "{model}")
    document["components"]["schemas"] |= definitions["$defs"]
    return document
