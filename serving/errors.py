"""What can go wrong with a request, in the shape that OpenAI clients read.

400  the request is wrong; `param` names the field
404  no such model or route           405  the route takes another method
408  the body did not arrive in time  413  the body or a picture is over its limit
429  no room in the queue; Retry-After says when to come back
500  the model or the service failed  503  still loading, failed to load, or shutting down
504  no complete answer before the deadline (in a stream that has begun: an event)
"""

from collections.abc import Mapping
from typing import Any

from fastapi.responses import JSONResponse

TAG = "<"  # begins the names of the alternatives of a union in a location; they are not fields


class ApiError(Exception):
    """An answer that is not a success.

    Args:
        status: HTTP status: 400, 404, 405, 413, 429, 500, 503 or 504.
        param: The request field at fault, as in "messages[0].content".
        retry_after: Seconds after which trying again makes sense.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.retry_after = retry_after

    @property
    def body(self) -> dict[str, Any]:
        """The JSON object that clients read."""
        kind = "server_error"
        if self.status == 429:
            kind = "rate_limit_error"
        elif self.status < 500:
            kind = "invalid_request_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The whole answer."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return JSONResponse(self.body, status_code=self.status, headers=headers)


def bad_request(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """A fault of the request itself."""
    return ApiError(400, message, param=param, code=code)


def too_large(message: str, param: str | None = None, code: str = "image_too_large") -> ApiError:
    """Something in the request is over its size limit."""
    return ApiError(413, message, param=param, code=code)


def deadline_passed(seconds: float) -> ApiError:
    """The work was given up for lack of time."""
    return ApiError(504, f"no complete answer within {seconds:g} seconds", code="deadline_exceeded")


def from_validation(fault: Mapping[str, Any]) -> ApiError:
    """Names the field that the schema refused; `fault` is one entry of pydantic's `errors()`."""
    location = fault["loc"][1:]  # the first part says "body"
    param = field_path(tuple(part for part in location if not str(part).startswith(TAG)))
    kind, message = fault["type"], fault["msg"].removeprefix("Value error, ")
    if kind == "json_invalid":
        reason = fault.get("ctx", {}).get("error", message)
        return bad_request(f"the body is not JSON: {reason}", code="invalid_json")
    if param is None and isinstance(fault["input"], bytes | None):
        return bad_request("the body must be a JSON object sent as application/json", code="invalid_json")
    if kind == "extra_forbidden":
        return bad_request(f"{param} is not a known field", param, code="unknown_field")
    if kind == "missing":
        return bad_request(f"{param} is required", param, code="missing_field")
    if kind in ("value_error", "part_type"):
        return bad_request(f"{param}: {message}" if param else message, param)
    return bad_request(f"{param or 'the body'}: {message}, got {_shorten(fault['input'])}", param)


def field_path(location: tuple[int | str, ...]) -> str | None:
    """Writes ("messages", 0, "content") as "messages[0].content"."""
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    return path.removeprefix(".") or None


def _shorten(value: object, length: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= length else text[: length - 3] + "..."
