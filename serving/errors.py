"""API errors in the shape that OpenAI clients read: {"error": {message, type, param, code}}.

400  the request is wrong; `param` names the field
404  no such model or route           405  the route takes another method
408  the body did not arrive in time  413  the body or a picture is over its limit
429  no room for the request; Retry-After says when to come back
500  the model or the service failed  503  still loading, failed to load, broken, or shutting down
504  no complete answer before the deadline (in a stream that has begun: an event)
"""

import reprlib
from collections.abc import Mapping
from typing import Any

from fastapi.responses import JSONResponse

CLIENT_GONE = 499  # nobody reads it; it shows in logs only
TAG = "<"  # begins the names of the alternatives of a union in a location; they are not fields
UNSUPPORTED = "unsupported"  # error type of a field of OpenAI's API that this service has no use for
SHOWN_CHARACTERS = 60  # of a value or of a field's name that the caller has sent

_short = reprlib.Repr()
_short.maxstring = _short.maxlong = _short.maxother = SHOWN_CHARACTERS


class ApiError(Exception):
    """An answer that is not a success.

    Args:
        status: One of the HTTP statuses above.
        param: The request field at fault, as in "messages[0].content".
        retry_after: Seconds after which trying again makes sense.
        headers: Further headers of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        retry_after: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.headers = dict(headers or {})
        if retry_after is not None:
            self.headers["Retry-After"] = str(retry_after)

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
        return JSONResponse(self.body, status_code=self.status, headers=self.headers)


class SlowReaderError(Exception):
    """The client has not read what was sent to it for longer than the limit allows."""


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
    param = field_path(tuple(part for part in fault["loc"] if not str(part).startswith(TAG)))
    kind, message = fault["type"], fault["msg"].removeprefix("Value error, ")
    if kind == "json_invalid":
        return bad_request(f"the body is not JSON: {fault['ctx']['error']}", code="invalid_json")
    if param is None and kind == "model_type":
        return bad_request("the body must be a JSON object", code="invalid_json")
    if kind == "extra_forbidden":
        return bad_request(f"{param} is not a known field", param, code="unknown_field")
    if kind == "missing":
        return bad_request(f"{param} is required", param, code="missing_field")
    if kind == UNSUPPORTED:
        return bad_request(f"{param} {message}", param, code="unsupported_value")
    if kind in ("value_error", "part_type"):
        return bad_request(f"{param}: {message}" if param else message, param)
    return bad_request(f"{param or 'the body'}: {message}, got {_short.repr(fault['input'])}", param)


def field_path(location: tuple[int | str, ...]) -> str | None:
    """Writes ("messages", 0, "content") as "messages[0].content"; long names are cut."""
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part[:SHOWN_CHARACTERS]}"
    return path.removeprefix(".") or None
