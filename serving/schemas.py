"""Pydantic models of the request bodies, in OpenAI's shapes, with every field known and checked.

Lists are bounded and stop at their first error, so that checking takes no longer than parsing.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from serving.unsupported_fields import UnusedChatFields, UnusedImagesFields, UnusedMessageFields

MAX_ITEMS = 1024  # of any list: bounds the work of checking; how many are taken is said by the limits
MAX_COUNT = 2**31 - 1
MAX_SEED = 2**63 - 1024  # the generator takes 63 bits; room for the seeds of further choices
MAX_STOPS, MAX_STOP_CHARACTERS = 4, 256
MAX_TEXT_TEMPERATURE, MAX_IMAGE_TEMPERATURE, MAX_GUIDANCE = 2.0, 10.0, 100.0

Modality = Literal["text", "image"]
Count = Annotated[int, Field(ge=0, le=MAX_COUNT)]
PositiveCount = Annotated[int, Field(ge=1, le=MAX_COUNT)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Share = Annotated[float, Field(ge=0, le=1)]
TopP = Annotated[float, Field(gt=0, le=1)]
TextTemperature = Annotated[float, Field(ge=0, le=MAX_TEXT_TEMPERATURE)]
ImageTemperature = Annotated[float, Field(ge=0, le=MAX_IMAGE_TEMPERATURE)]
Guidance = Annotated[float, Field(ge=0, le=MAX_GUIDANCE)]


class RequestModel(BaseModel):
    """Unknown fields are refused by name, numbers are not parsed from strings, null means absent."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {name: field for name, field in value.items() if field is not None or name not in _fields(cls)}


def _fields(model: type[BaseModel]) -> dict[str, Any]:
    return model.model_fields


class ImageUrl(RequestModel):
    """Where a picture is: a data URL."""

    url: str
    detail: Literal["auto", "low", "high"] = "auto"  # accepted for compatibility; there is one resolution


class TextPart(RequestModel):
    """A piece of text."""

    type: Literal["text"]
    text: str


class ImagePart(RequestModel):
    """A picture."""

    type: Literal["image_url"]
    image_url: ImageUrl


def _kind_of_part(value: object) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return f"<{kind}>" if kind in ("text", "image_url") else None


def _kind_of_content(value: object) -> str:
    return "<parts>" if isinstance(value, list) else "<string>"


Part = Annotated[
    Annotated[TextPart, Tag("<text>")] | Annotated[ImagePart, Tag("<image_url>")],
    Discriminator(
        _kind_of_part,
        custom_error_type="part_type",
        custom_error_message="a part needs a type, 'text' or 'image_url'",
    ),
]
Parts = Annotated[list[Part], Field(fail_fast=True, max_length=MAX_ITEMS)]
Content = Annotated[
    Annotated[str, Tag("<string>")] | Annotated[Parts, Tag("<parts>")], Discriminator(_kind_of_content)
]


class Message(RequestModel, UnusedMessageFields):
    """One turn; `images` is how our own replies carry pictures, so a reply can be sent back as it came."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content = ""
    images: Annotated[list[ImagePart], Field(fail_fast=True, max_length=MAX_ITEMS)] = []

    @field_validator("images")
    @classmethod
    def _are_of_the_assistant(cls, value: list[ImagePart], info: ValidationInfo) -> list[ImagePart]:
        if value and info.data.get("role") != "assistant":
            raise ValueError("only an assistant message has images beside its content; use image_url parts")
        return value

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.content and not self.images:
            raise ValueError("a message needs content")
        return self


class StreamOptions(RequestModel):
    """What a stream ends with."""

    include_usage: bool = False
    include_obfuscation: bool = False  # accepted for compatibility; nothing is padded


class ImageSampling(RequestModel):
    """How pictures are sampled; what is absent keeps the default of `model.generation.sampling`.

    `fine_top_p` and `fine_guidance` are those of finer scales: whoever wants one value for all sets both.
    """

    temperature: ImageTemperature | None = None
    top_k: Count | None = None
    top_p: TopP | None = None
    fine_top_p: TopP | None = None
    guidance: Guidance | None = None
    fine_guidance: Guidance | None = None
    guidance_mode: Literal["prompt", "noise", "none"] | None = None
    cooling: Share | None = None
    smoothing: bool | None = None
    max_images: Count | None = None


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


StopStrings = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]],
    Field(fail_fast=True, max_length=MAX_STOPS),
    BeforeValidator(_as_list, json_schema_input_type=str | list[str]),
]


class ChatRequest(RequestModel, UnusedChatFields):
    """Body of POST /v1/chat/completions."""

    model: str | None = None
    messages: Annotated[list[Message], Field(fail_fast=True, min_length=1, max_length=MAX_ITEMS)]
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: PositiveCount = 1
    stop: StopStrings = []
    modalities: Annotated[list[Modality], Field(fail_fast=True, min_length=1, max_length=MAX_ITEMS)] = [
        "text",
        "image",
    ]
    response_content: Literal["string", "parts"] = "string"
    temperature: TextTemperature | None = None
    top_p: TopP | None = None
    top_k: Count | None = None
    seed: Seed | None = None
    max_tokens: PositiveCount | None = None
    max_completion_tokens: PositiveCount | None = None
    image: ImageSampling = ImageSampling()

    @field_validator("stream_options")
    @classmethod
    def _needs_a_stream(cls, value: StreamOptions | None, info: ValidationInfo) -> StreamOptions | None:
        if value is not None and not info.data.get("stream"):
            raise ValueError("stream_options needs stream to be true")
        return value

    @field_validator("max_completion_tokens")
    @classmethod
    def _is_the_only_limit(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("max_tokens") is not None:
            raise ValueError("max_tokens and max_completion_tokens are one limit; give one of them")
        return value

    @property
    def new_tokens(self) -> int | None:
        """The limit on new text tokens, under either of its names."""
        return self.max_completion_tokens if self.max_tokens is None else self.max_tokens

    @property
    def draws_only(self) -> bool:
        """Whether the caller wants pictures and no text."""
        return set(self.modalities) == {"image"}


class ImagesRequest(RequestModel, UnusedImagesFields):
    """Body of POST /v1/images/generations."""

    model: str | None = None
    prompt: str = Field(min_length=1)
    n: PositiveCount = 1
    size: str = "auto"
    response_format: Literal["b64_json"] = "b64_json"
    output_format: Literal["png"] = "png"
    seed: Seed | None = None
    image: ImageSampling = ImageSampling()

    @field_validator("image")
    @classmethod
    def _does_not_count(cls, value: ImageSampling) -> ImageSampling:
        if value.max_images is not None:
            raise ValueError("max_images has no meaning here; n says how many images to draw")
        return value
