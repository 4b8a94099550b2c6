"""Laws of sizes: the 7b preset counts as published, tiny is tiny, impossible architectures are refused."""

import pytest
import torch
from torch import nn

from model.config import ImageTokenizerConfig, VargptConfig, VisualDecoderConfig, preset
from model.errors import UserError
from model.image_tokenizer import ImageTokenizer
from model.modeling import VargptForConditionalGeneration
from model.quantizer import refiner_of_scale

# Of the released model, less the layer norms that its projectors hold and never apply (2 * width each).
PUBLISHED = {
    "vision_tower": 303_507_456,
    "understanding_projector": 20_979_712,
    "language_model": 6_738_939_904,
    "generation_input_projector": 11_560_576 - 2 * 1920,
    "generation_output_projector": 24_655_744 - 2 * 4096,
    "visual_decoder": 2_069_546_116,
    "image_tokenizer": 108_948_355,
}


def test_the_7b_preset_has_the_published_number_of_parameters_in_every_part():
    with torch.device("meta"):
        model = VargptForConditionalGeneration(preset("7b"))

    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}

    assert counts == PUBLISHED
    assert round(sum(counts.values()) / 1e9, 2) == 9.28


def test_sizes_follow_from_the_scales():
    tiny, large = preset("tiny"), preset("7b")

    assert (tiny.num_image_tokens, tiny.image_size, tiny.num_vision_tokens) == (30, 32, 17)
    assert (large.num_image_tokens, large.image_size, large.num_vision_tokens) == (680, 256, 576)


def test_channels_are_normalised_in_groups_that_must_come_out_even():
    config = preset("tiny").image_tokenizer_config
    tokenizer = ImageTokenizer(config)

    assert preset("7b").image_tokenizer_config.norm_groups == 32
    assert {m.num_groups for m in tokenizer.modules() if isinstance(m, nn.GroupNorm)} == {config.norm_groups}
    config.norm_groups = 5
    with pytest.raises(ValueError, match="channels must be multiples of norm_groups 5, got 32"):
        ImageTokenizer(config)


def test_blocks_of_pixels_shorten_the_way_down_and_keep_every_pixel():
    config = ImageTokenizerConfig(
        scales=(1, 2), channels=(32, 64), latent_dim=4, codebook_size=8, num_refiners=1, pixel_block=3
    )
    tokenizer = ImageTokenizer(config).eval()
    picture = torch.rand(1, 3, 12, 12)

    assert preset("7b").image_tokenizer_config.pixel_block == 1
    assert config.image_size == 12
    seen = []
    tokenizer.encoder.conv_in.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    made = tokenizer(picture).pixels
    assert made.shape == picture.shape
    assert torch.equal(seen[0][0, :, 1, 2].view(3, 3, 3), picture[0, :, 3:6, 6:9])


def test_a_config_survives_the_disk(tmp_path):
    preset("tiny").save_pretrained(tmp_path)

    assert VargptConfig.from_pretrained(tmp_path).to_dict() == preset("tiny").to_dict()


def test_refining_convolutions_serve_the_published_scales():
    assert refiner_of_scale(10, 4) == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]
    assert refiner_of_scale(14, 4) == [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3]


def test_impossible_architectures_are_refused_by_name():
    with pytest.raises(ValueError, match="scales must grow strictly"):
        ImageTokenizerConfig(scales=(1, 3, 2))
    with pytest.raises(ValueError, match="width 100 must be a multiple of num_heads 3"):
        VisualDecoderConfig(width=100, num_heads=3)
    with pytest.raises(ValueError, match=r"preset must be one of .* got 'huge'"):
        preset("huge")


@pytest.mark.parametrize(
    ("config", "field", "value"),
    [
        (ImageTokenizerConfig, "codebook_size", 0),
        (ImageTokenizerConfig, "latent_dim", 0),
        (ImageTokenizerConfig, "channels", ()),
        (ImageTokenizerConfig, "channels", (32, 0)),
        (ImageTokenizerConfig, "encoder_blocks", 0),
        (ImageTokenizerConfig, "decoder_blocks", -1),
        (ImageTokenizerConfig, "num_refiners", 0),
        (ImageTokenizerConfig, "pixel_block", 0),
        (ImageTokenizerConfig, "norm_groups", 0),
        (VisualDecoderConfig, "depth", 0),
        (VisualDecoderConfig, "width", 0),
        (VisualDecoderConfig, "num_heads", 0),
        (VisualDecoderConfig, "mlp_ratio", 0),
        (VisualDecoderConfig, "num_starts", 0),
        (VisualDecoderConfig, "drop_path", 1.0),
        (VisualDecoderConfig, "drop_path", -0.1),
        (VargptConfig, "vision_feature_layer", 13),
        (VargptConfig, "vision_feature_layer", -14),
    ],
)
def test_sizes_that_fit_no_network_are_refused_by_name(config, field, value):
    with pytest.raises(UserError, match=field):
        config(**{field: value})
