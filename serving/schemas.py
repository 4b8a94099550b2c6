"""Requests in OpenAI's shapes, with every field known and checked."""

from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

Modality = Literal["text", "image"]


class Strict(BaseModel):
    """Unknown fields are refused by name; numbers are not parsed from strings."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class ImageUrl(Strict):
    """Where a picture is: a data URL."""

    url: str
    detail: Literal["auto", "low", "high"] = "auto"  # accepted for compatibility; there is one resolution


class TextPart(Strict):
    """A piece of text."""

    type: Literal["text"]
    text: str


class ImagePart(Strict):
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
Content = Annotated[
    Annotated[str, Tag("<string>")] | Annotated[list[Part], Tag("<parts>")], Discriminator(_kind_of_content)
]


class Message(Strict):
    """One turn; `images` is how our own replies carry pictures, so a reply can be sent back as it came."""

    role: Literal["system", "user", "assistant"]
    content: Content = ""
    images: list[ImagePart] = []

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


class StreamOptions(Strict):
    """What a stream ends with."""

    include_usage: bool = False


class ImageSampling(Strict):
    """How pictures are sampled; what is absent keeps the default of `model.sampling.SamplingParams`.

    `fine_top_p` and `fine_guidance` are those of finer scales: whoever wants one value for all sets both.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    fine_top_p: float | None = None
    guidance: float | None = None
    fine_guidance: float | None = None
    guidance_mode: str | None = None
    cooling: float | None = None
    smoothing: bool | None = None
    max_images: int | None = None


class ChatRequest(Strict):
    """Body of POST /v1/chat/completions."""

    model: str | None = None
    messages: list[Message] = Field(min_length=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int = Field(default=1, ge=1)
    modalities: list[Modality] = Field(default=["text", "image"], min_length=1)
    response_content: Literal["string", "parts"] = "string"
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    image: ImageSampling = ImageSampling()
    user: str | None = None  # accepted for compatibility; nothing is kept about users

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


class ImagesRequest(Strict):
    """Body of POST /v1/images/generations."""

    model: str | None = None
    prompt: str = Field(min_length=1)
    n: int = Field(default=1, ge=1)
    size: str = "auto"
    response_format: Literal["b64_json"] = "b64_json"
    output_format: Literal["png"] = "png"
    quality: Literal["auto"] = "auto"
    seed: int | None = None
    image: ImageSampling = ImageSampling()
    stream: bool = False
    partial_images: int | None = None
    user: str | None = None

    @field_validator("stream", "partial_images")
    @classmethod
    def _is_not_supported_yet(cls, value: bool | int | None) -> bool | int | None:
        if value:
            raise ValueError("drawing in a stream is not supported yet; ask without it")
        return value

    @field_validator("image")
    @classmethod
    def _does_not_count(cls, value: ImageSampling) -> ImageSampling:
        if value.max_images is not None:
            raise ValueError("max_images has no meaning here; n says how many images to draw")
        return value
