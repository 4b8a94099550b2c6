"""Pictures of requests and responses: what is read, what is refused and before which work."""

import base64
import io
import struct
import zlib

import pytest
from PIL import Image, PngImagePlugin

from serving.config import Limits
from serving.errors import ApiError
from serving.images import decode_data_url, encode_data_url

LIMITS = Limits(image_bytes=50_000, image_pixels=64 * 64)


def file_of(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def url_of(data: bytes, media_type: str = "png") -> str:
    return f"data:image/{media_type};base64,{base64.b64encode(data).decode()}"


def refusal(url: str, limits: Limits = LIMITS) -> ApiError:
    with pytest.raises(ApiError) as caught:
        decode_data_url(url, limits, "url")
    return caught.value


def png_that_claims(width: int, height: int) -> bytes:
    """A few bytes whose header promises a huge picture."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_a_picture_survives_the_way_out_and_in():
    image = Image.effect_noise((20, 12), 60).convert("RGB")

    assert decode_data_url(encode_data_url(image), LIMITS, "url").tobytes() == image.tobytes()


@pytest.mark.parametrize(
    ("kind", "media_type"), [("PNG", "png"), ("JPEG", "jpeg"), ("JPEG", "jpg"), ("WEBP", "webp")]
)
def test_the_three_formats_are_read(kind: str, media_type: str):
    image = decode_data_url(url_of(file_of(Image.new("RGB", (8, 6), "red"), kind), media_type), LIMITS, "url")

    assert (image.size, image.mode) == ((8, 6), "RGB")
    assert image.getpixel((3, 3))[0] > 240


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1/a.png", "https://example.org/a.png", "file:///etc/passwd", "ftp://a/b", "", "a.png"],
)
def test_nothing_is_fetched(url: str):
    error = refusal(url)

    assert (error.status, error.code, error.param) == (400, "invalid_image_url", "url")


@pytest.mark.parametrize(
    "url", ["data:image/svg+xml;base64,PHN2Zy8+", "data:image/png,abc", "data:text/html;base64,AA"]
)
def test_other_media_types_are_refused(url: str):
    assert refusal(url).code == "invalid_image"


@pytest.mark.parametrize("payload", ["@@@@", "AAA", "caf\u00e9", "\u0661\u0662\u0663\u0664"])
def test_broken_base64_is_refused(payload: str):
    assert refusal(f"data:image/png;base64,{payload}").code == "invalid_image"


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "PPM"])
def test_a_false_media_type_opens_no_further_decoder(kind: str):
    error = refusal(url_of(file_of(Image.new("RGB", (8, 8)), kind)))

    assert error.status == 400
    assert "none of PNG, JPEG, WebP" in error.message


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_cut_or_garbled_file_is_a_bad_request(kind: str):
    data = file_of(Image.effect_noise((32, 32), 60).convert("RGB"), kind)

    for number in range(0, len(data), max(1, len(data) // 40)):
        garbled = bytearray(data)
        garbled[number] ^= 0xFF
        for damaged in (data[:number], bytes(garbled)):
            try:
                decode_data_url(url_of(damaged, kind.lower()), LIMITS, "url")
            except ApiError as error:
                assert error.status in (400, 413)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [65, 13_000, 100_000])
def test_pixels_are_counted_before_they_are_decoded(side: int):
    error = refusal(url_of(png_that_claims(side, side)))

    assert (error.status, error.code) == (413, "image_too_large")


@pytest.mark.parametrize(
    ("width", "height", "status"),
    [(8000, 1, 400), (1, 8000, 400), (1, 4_000_000, 413), (9000, 3000, 413), (64, 3, 400)],
)
def test_long_and_narrow_pictures_are_refused_by_their_header(width: int, height: int, status: int):
    error = refusal(url_of(png_that_claims(width, height)), Limits(image_side=8192, image_aspect=16))

    assert (error.status, error.param) == (status, "url")
    assert f"{width} x {height}" in error.message


def test_a_picture_at_the_border_of_side_and_aspect_is_read():
    limits = Limits(image_side=64, image_aspect=16)

    assert decode_data_url(url_of(file_of(Image.new("RGB", (64, 4)))), limits, "url").size == (64, 4)
    assert refusal(url_of(file_of(Image.new("RGB", (65, 65)))), limits).status == 413
    assert refusal(url_of(file_of(Image.new("RGB", (64, 3)))), limits).status == 400


def test_bytes_are_counted_before_base64_is_decoded():
    error = refusal("data:image/png;base64," + "A" * 70_000)

    assert (error.status, error.code) == (413, "image_too_large")


def test_a_compressed_text_in_a_png_is_no_way_in():
    info = PngImagePlugin.PngInfo()
    info.add_text("bomb", "x" * 80_000_000, zip=True)
    data = file_of(Image.new("RGB", (8, 8)), pnginfo=info)

    assert refusal(url_of(data), Limits(image_bytes=10_000_000)).status == 400


def test_an_animation_is_refused():
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]

    for kind in ("PNG", "WEBP"):
        data = file_of(frames[0], kind, save_all=True, append_images=frames[1:])
        assert "animated" in refusal(url_of(data, kind.lower())).message


def test_transparent_places_are_white_and_not_what_lies_beneath():
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0))

    assert decode_data_url(encode_data_url(image), LIMITS, "url").getpixel((1, 1)) == (255, 255, 255)


def test_a_photograph_taken_sideways_is_set_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = file_of(Image.new("RGB", (20, 10)), "JPEG", exif=exif)

    assert decode_data_url(url_of(data, "jpeg"), LIMITS, "url").size == (10, 20)
