"""Decoding and encoding of pictures in requests and responses: data URLs only, nothing is fetched."""

import base64
import io
import re
import struct
import zlib

from PIL import Image, ImageOps

from serving.config import Limits
from serving.errors import ApiError, bad_request, too_large

FORMATS = ("PNG", "JPEG", "WEBP")
_DATA_URL = re.compile(r"data:image/(png|jpe?g|webp)((?:;[\w.+-]+=[\w.+-]+)*);base64,", re.IGNORECASE)
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, struct.error, zlib.error)


def decode_data_url(url: str, limits: Limits, param: str) -> Image.Image:
    """Reads a data URL into an upright RGB picture.

    Every size is checked before the work it would cost: characters before base64, pixels before decoding.

    Args:
        param: The request field that holds the URL, for the error.
    """
    match = _DATA_URL.match(url)
    if match is None:
        raise _not_a_data_url(url, param)
    payload = url[match.end() :]
    if len(payload) > 4 * (limits.image_bytes // 3 + 1):
        raise too_large(f"{param} has more than {limits.image_bytes} bytes", param)
    try:
        data = base64.b64decode(payload, validate=True)
    except ValueError as error:  # binascii.Error, and of characters that are not ASCII a plain one
        raise bad_request(f"{param} is not base64: {error}", param, "invalid_image") from None
    return decode_image(data, limits, param)


def decode_image(data: bytes, limits: Limits, param: str) -> Image.Image:
    """Reads the bytes of a PNG, JPEG or WebP file into an upright RGB picture."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_header(image, limits, param)
            image.load()
            return _flatten(ImageOps.exif_transpose(image))
    except Image.DecompressionBombError:
        raise too_large(f"{param} has more than {limits.image_pixels} pixels", param) from None
    except _BROKEN as error:
        reason = (
            "it is none of PNG, JPEG, WebP" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        )
        raise bad_request(f"{param} is not a readable image: {reason}", param, "invalid_image") from None


def encode_png(image: Image.Image) -> str:
    """Base64 of the picture as a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def encode_data_url(image: Image.Image) -> str:
    """The picture as a PNG data URL."""
    return "data:image/png;base64," + encode_png(image)


def _not_a_data_url(url: str, param: str) -> ApiError:
    wanted = "only data URLs (data:image/png;base64,... or jpeg or webp) are read"
    if url.lower().startswith("data:"):
        return bad_request(
            f"{param} has an unsupported media type or encoding; {wanted}", param, "invalid_image"
        )
    return bad_request(f"{param} is not a data URL; {wanted}, nothing is fetched", param, "invalid_image_url")


def _check_header(image: Image.Image, limits: Limits, param: str) -> None:
    width, height = image.size
    size = f"{param} has {width} x {height} pixels"
    if width * height > limits.image_pixels:
        raise too_large(f"{size}; at most {limits.image_pixels} are read", param)
    if max(width, height) > limits.image_side:
        raise too_large(f"{size}; no side may have more than {limits.image_side}", param)
    if max(width, height) > limits.image_aspect * min(width, height):
        message = f"{size}; the longer side may be at most {limits.image_aspect:g} times the shorter"
        raise bad_request(message, param, "invalid_image")
    if getattr(image, "n_frames", 1) > 1:
        raise bad_request(f"{param} is animated ({image.n_frames} frames)", param, "invalid_image")


def _flatten(image: Image.Image) -> Image.Image:
    """RGB, with transparent places white rather than whatever colour lies hidden there."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    white = Image.new("RGBA", rgba.size, "white")
    return Image.alpha_composite(white, rgba).convert("RGB")
