"""Operations of the image tokenizer, from the configuration alone: encoder, quantizer, decoder.

None of them learns in a stage. The encoder runs where codes of pictures are not cached, the quantizer always,
the decoder only where pictures are drawn.
"""

from collections.abc import Iterator
from itertools import pairwise

from model.config import ImageTokenizerConfig
from model.quantizer import refiner_of_scale
from model.scales import num_tokens
from training.planning.operations import Applied, Operation, Unit

PICTURE = Applied(Unit.DRAWN_IMAGE)
PATH = "image_tokenizer"


def encoder(config: ImageTokenizerConfig) -> Iterator[Operation]:
    """Pixels to the latent map."""
    widths, path = config.channels, f"{PATH}.encoder"
    side = config.image_size // config.pixel_block
    yield PICTURE.convolution(f"{path}.conv_in", 3 * config.pixel_block**2, widths[0], 3, side)
    for level, width in enumerate(widths):
        is_last = level == len(widths) - 1
        before = widths[max(level - 1, 0)]
        yield from _level(f"{path}.levels.{level}", before, width, config.encoder_blocks, is_last, side)
        if not is_last:
            side //= 2
            yield PICTURE.convolution(f"{path}.levels.{level}.resize.conv", width, width, 3, side)
    yield from _middle(f"{path}.middle", widths[-1], side)
    yield PICTURE.table(f"{path}.norm_out", 2 * widths[-1])
    yield PICTURE.convolution(f"{path}.conv_out", widths[-1], config.latent_dim, 3, side)
    yield PICTURE.convolution(f"{PATH}.to_latent", config.latent_dim, config.latent_dim, 3, side)


def decoder(config: ImageTokenizerConfig) -> Iterator[Operation]:
    """The latent map to pixels."""
    widths, path, side = config.channels[::-1], f"{PATH}.decoder", config.scales[-1]
    yield PICTURE.convolution(f"{PATH}.from_latent", config.latent_dim, config.latent_dim, 3, side)
    yield PICTURE.convolution(f"{path}.conv_in", config.latent_dim, widths[0], 3, side)
    yield from _middle(f"{path}.middle", widths[0], side)
    for level, width in enumerate(widths):
        before = widths[max(level - 1, 0)]
        yield from _level(f"{path}.levels.{level}", before, width, config.decoder_blocks, level == 0, side)
        if level < len(widths) - 1:
            side *= 2
            yield PICTURE.convolution(f"{path}.levels.{level}.resize.conv", width, width, 3, side)
    yield PICTURE.table(f"{path}.norm_out", 2 * widths[-1])
    yield PICTURE.convolution(f"{path}.conv_out", widths[-1], 3 * config.pixel_block**2, 3, side)


def quantizer(config: ImageTokenizerConfig, *, encodes: bool) -> Iterator[Operation]:
    """Codebook and refining convolutions.

    Args:
        encodes: Whether codes are looked for as well: for each scale the distances to all codes, and what its
            codes add to the canvas. The input of the visual decoder takes the latter, but for the last scale,
            in any case.
    """
    latent, side, scales = config.latent_dim, config.scales[-1], config.scales
    yield PICTURE.table(f"{PATH}.quantizer.codebook", config.codebook_size * latent)
    used_by = refiner_of_scale(len(scales), config.num_refiners)
    uses = [*used_by[:-1], *(used_by if encodes else ())]
    for index in range(config.num_refiners):
        path = f"{PATH}.quantizer.refiners.{index}"
        yield PICTURE.convolution(path, latent, latent, 3, side, uses=uses.count(index))
    if encodes:
        yield PICTURE.product(f"{PATH}.quantizer.distances", latent, config.codebook_size, num_tokens(scales))


def _level(
    path: str, before: int, width: int, num_blocks: int, has_attention: bool, side: int
) -> Iterator[Operation]:
    for index, (inputs, outputs) in enumerate(pairwise([before] + [width] * num_blocks)):
        yield from _residual_block(f"{path}.blocks.{index}", inputs, outputs, side)
        if has_attention:
            yield from _attention(f"{path}.attentions.{index}", outputs, side)


def _middle(path: str, width: int, side: int) -> Iterator[Operation]:
    yield from _residual_block(f"{path}.0", width, width, side)
    yield from _attention(f"{path}.1", width, side)
    yield from _residual_block(f"{path}.2", width, width, side)


def _residual_block(path: str, inputs: int, outputs: int, side: int) -> Iterator[Operation]:
    yield PICTURE.table(f"{path}.norm1", 2 * inputs)
    yield PICTURE.convolution(f"{path}.conv1", inputs, outputs, 3, side)
    yield PICTURE.table(f"{path}.norm2", 2 * outputs)
    yield PICTURE.convolution(f"{path}.conv2", outputs, outputs, 3, side)
    if inputs != outputs:
        yield PICTURE.convolution(f"{path}.shortcut", inputs, outputs, 1, side)


def _attention(path: str, width: int, side: int) -> Iterator[Operation]:
    yield PICTURE.table(f"{path}.norm", 2 * width)
    yield PICTURE.convolution(f"{path}.qkv", width, 3 * width, 1, side)
    yield PICTURE.attention(path, width, side * side)
    yield PICTURE.convolution(f"{path}.out", width, width, 1, side)
