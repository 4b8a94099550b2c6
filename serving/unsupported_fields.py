"""Fields of OpenAI's API that this service has no use for.

Clients send many of them with values that change nothing: those are accepted. Every value that asks for
something the service does not do is refused by name, so that nobody believes to have got it.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel
from pydantic_core import PydanticCustomError

from serving.errors import UNSUPPORTED


def _only(*allowed: Any) -> AfterValidator:
    """Refuses all values but those that change nothing."""
    instead = " or ".join(repr(value) for value in allowed)
    advice = f"leave it out or send {instead}" if allowed else "leave it out"

    def check(value: Any) -> Any:
        if value not in allowed:
            raise PydanticCustomError(UNSUPPORTED, "is not supported; {advice}", {"advice": advice})
        return value

    return AfterValidator(check)


def _without_effect(biases: dict[str, float]) -> dict[str, float]:
    if any(biases.values()):
        raise PydanticCustomError(UNSUPPORTED, "is not supported; leave it out or send an empty object")
    return biases


class UnusedChatFields(BaseModel):
    """Fields of a chat request."""

    frequency_penalty: Annotated[float, _only(0)] = 0
    presence_penalty: Annotated[float, _only(0)] = 0
    logit_bias: Annotated[dict[str, float], AfterValidator(_without_effect)] = {}
    logprobs: Annotated[bool, _only(False)] = False
    top_logprobs: Annotated[int, _only(0)] = 0
    response_format: Annotated[Any, _only({"type": "text"})] = None
    tools: Annotated[list[Any], _only([])] = []
    tool_choice: Annotated[Any, _only("none", "auto")] = None
    parallel_tool_calls: bool = True  # there are no tools
    functions: Annotated[list[Any], _only([])] = []
    function_call: Annotated[Any, _only("none", "auto")] = None
    prediction: Annotated[Any, _only()] = None
    audio: Annotated[Any, _only()] = None
    web_search_options: Annotated[Any, _only()] = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] = "none"
    verbosity: Annotated[str, _only("medium")] = "medium"
    service_tier: Annotated[str, _only("auto", "default")] = "auto"
    store: bool = False  # nothing is stored, whatever is asked
    metadata: dict[str, Any] = {}
    prompt_cache_key: str = ""
    prompt_cache_retention: str = ""
    safety_identifier: str = ""
    user: str = ""  # nothing is kept about users


class UnusedMessageFields(BaseModel):
    """Fields of a message, most of them nulls that clients send back as they have received them."""

    name: str = ""
    refusal: Annotated[Any, _only()] = None
    audio: Annotated[Any, _only()] = None
    annotations: Annotated[list[Any], _only([])] = []
    tool_calls: Annotated[list[Any], _only([])] = []
    function_call: Annotated[Any, _only()] = None


class UnusedImagesFields(BaseModel):
    """Fields of a request for images."""

    background: Annotated[str, _only("auto", "opaque")] = "auto"
    moderation: Literal["auto", "low"] = "auto"
    output_compression: Annotated[int, _only(100)] = 100
    partial_images: Annotated[int, _only(0)] = 0
    quality: Annotated[str, _only("auto", "standard")] = "auto"
    stream: Annotated[bool, _only(False)] = False
    style: Annotated[Any, _only()] = None
    user: str = ""  # nothing is kept about users
