"""Architecture of each part as transformers configurations, and the presets `tiny` and `7b`."""

from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers import CLIPVisionConfig, LlamaConfig, PreTrainedConfig

from model.errors import UserError
from model.scales import num_tokens


def _check_at_least(config: PreTrainedConfig, least: int, *names: str) -> None:
    for name in names:
        if getattr(config, name) < least:
            raise UserError(f"{name} must be at least {least}, got {getattr(config, name)}")


@strict
class ImageTokenizerConfig(PreTrainedConfig):
    """Multi-scale VQ-VAE. UserError for sizes that fit no network.

    Args:
        scales: Sides of the token maps, coarse to fine.
        channels: Of the autoencoder at each resolution, finest first; each further one has half the side.
        num_refiners: Convolutions that refine the canvas; neighbouring scales share one.
        pixel_block: Side of the blocks of pixels that enter as channels of one position (pixel unshuffle); 1
            in the published tokenizer.
        norm_groups: Groups of each group normalisation.
    """

    model_type = "vargpt_image_tokenizer"

    scales: list[int] | tuple[int, ...] = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    codebook_size: int = 4096
    latent_dim: int = 32
    channels: list[int] | tuple[int, ...] = (160, 160, 320, 320, 640)
    encoder_blocks: int = 2
    decoder_blocks: int = 3
    num_refiners: int = 4
    pixel_block: int = 1
    norm_groups: int = 32

    def __post_init__(self, **kwargs: Any) -> None:
        self.scales, self.channels = tuple(self.scales), tuple(self.channels)
        if not self.scales or list(self.scales) != sorted(set(self.scales)) or self.scales[0] < 1:
            raise UserError(f"scales must grow strictly from at least 1, got {self.scales}")
        if not self.channels or min(self.channels) < 1:
            raise UserError(f"channels must name one positive width for each resolution, got {self.channels}")
        _check_at_least(self, 1, "codebook_size", "latent_dim", "encoder_blocks", "decoder_blocks")
        _check_at_least(self, 1, "num_refiners", "pixel_block", "norm_groups")
        super().__post_init__(**kwargs)

    @property
    def pixels_per_token(self) -> int:
        """Side, in pixels, of what one token of the finest scale covers: 16 for `7b`."""
        return self.pixel_block * 2 ** (len(self.channels) - 1)

    @property
    def image_size(self) -> int:
        """Side of a drawn image in pixels."""
        return self.scales[-1] * self.pixels_per_token


@strict
class VisualDecoderConfig(PreTrainedConfig):
    """Transformer that predicts the codes of the next scale. UserError for sizes that fit no network.

    Args:
        drop_path: Stochastic depth of the last block; it grows from 0 with the blocks.
        num_starts: Rows of the start embedding, whose vectors stand at the first scale and are the condition
            of every block. The last row is the null start, of unconditional images, and the row before it
            that of all other images; a class-conditional decoder has one row for each class instead.
    """

    model_type = "vargpt_visual_decoder"

    depth: int = 30
    width: int = 1920
    num_heads: int = 30
    mlp_ratio: int = 4
    drop_path: float = 0.125
    num_starts: int = 32004

    def __post_init__(self, **kwargs: Any) -> None:
        _check_at_least(self, 1, "depth", "width", "num_heads", "mlp_ratio", "num_starts")
        if not 0 <= self.drop_path < 1:
            raise UserError(f"drop_path must be at least 0 and below 1, got {self.drop_path}")
        if self.width % self.num_heads:
            raise UserError(f"width {self.width} must be a multiple of num_heads {self.num_heads}")
        super().__post_init__(**kwargs)

    @property
    def null_start(self) -> int:
        """Row of the start embedding that opens an unconditional image."""
        return self.num_starts - 1

    @property
    def image_start(self) -> int:
        """Row of the start embedding that opens any other image."""
        return max(self.num_starts - 2, 0)


@strict
class VargptConfig(PreTrainedConfig):
    """The whole model: vision tower, language model, image tokenizer, visual decoder.

    Source: configuration `vargpt_llava` of VARGPT v1, arXiv:2501.12327.

    Args:
        vision_feature_layer: Index into the vision tower's hidden states.
        vision_feature_select_strategy: `default` drops the class token, `full` keeps it.
        image_token_id: Stands at every position of an input image.
        image_start_token_id, image_end_token_id: Stand before and after a drawn image.
        image_pad_token_id: Stands at every position of a drawn image.
        null_prompt: Token ids of the empty instruction, as they stand before an image: the unconditional
            branch of guidance.
    """

    model_type = "vargpt"
    sub_configs: ClassVar[dict[str, type[PreTrainedConfig]]] = {
        "vision_config": CLIPVisionConfig,
        "text_config": LlamaConfig,
        "image_tokenizer_config": ImageTokenizerConfig,
        "visual_decoder_config": VisualDecoderConfig,
    }

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    image_tokenizer_config: dict | PreTrainedConfig | None = None
    visual_decoder_config: dict | PreTrainedConfig | None = None
    vision_feature_layer: int = -2
    vision_feature_select_strategy: Literal["default", "full"] = "default"
    image_token_id: int = 32000
    image_start_token_id: int = 32002
    image_end_token_id: int = 32003
    image_pad_token_id: int = 32004
    null_prompt: list[int] | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        for name, config_class in self.sub_configs.items():
            given = getattr(self, name)
            if not isinstance(given, PreTrainedConfig):
                values = {key: value for key, value in (given or {}).items() if key != "model_type"}
                setattr(self, name, config_class(**values))
        num_layers = self.vision_config.num_hidden_layers
        if not -num_layers - 1 <= self.vision_feature_layer <= num_layers:
            raise UserError(
                f"vision_feature_layer must be from {-num_layers - 1} to {num_layers}, "
                f"got {self.vision_feature_layer}"
            )
        super().__post_init__(**kwargs)

    @property
    def scales(self) -> tuple[int, ...]:
        """Sides of the token maps of a drawn image, coarse to fine."""
        return self.image_tokenizer_config.scales

    @property
    def num_image_tokens(self) -> int:
        """Positions that one drawn image takes in the language model, 680 for `7b`."""
        return num_tokens(self.scales)

    @property
    def image_size(self) -> int:
        """Side of a drawn image in pixels."""
        return self.image_tokenizer_config.image_size

    @property
    def num_vision_tokens(self) -> int:
        """Positions that one image takes as input, 576 for `7b`."""
        patches = (self.vision_config.image_size // self.vision_config.patch_size) ** 2
        return patches + (self.vision_feature_select_strategy == "full")

    @property
    def hidden_size(self) -> int:
        """Width of the language model."""
        return self.text_config.hidden_size


PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {
        "vision_config": {
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "image_size": 32,
            "patch_size": 8,
            "projection_dim": 128,
        },
        "text_config": {
            "hidden_size": 192,
            "intermediate_size": 512,
            # Two layers learn to compare words sooner than four, and a step takes little more than half the
            # time.
            "num_hidden_layers": 2,
            "num_attention_heads": 6,
            "num_key_value_heads": 6,
            "vocab_size": 1024,
            "max_position_embeddings": 512,
            "rms_norm_eps": 1e-5,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": 2,
        },
        "image_tokenizer_config": {
            "scales": (1, 2, 3, 4),
            "codebook_size": 256,
            "latent_dim": 16,
            "channels": (32, 64, 96),
            "encoder_blocks": 1,
            "decoder_blocks": 1,
            "num_refiners": 3,
            # With blocks of one pixel, the finest resolution would take almost half of the time.
            "pixel_block": 2,
            # With one channel a group, normalisation would remove the brightness of every image.
            "norm_groups": 8,
        },
        "visual_decoder_config": {
            "depth": 4,
            "width": 128,
            "num_heads": 4,
            "drop_path": 0.0,
            "num_starts": 2,
        },
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "image_token_id": 3,
        "image_start_token_id": 4,
        "image_end_token_id": 5,
        "image_pad_token_id": 6,
    },
    "7b": {
        "vision_config": {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "image_size": 336,
            "patch_size": 14,
            "projection_dim": 768,
        },
        "text_config": {
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "vocab_size": 32064,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
            "pad_token_id": 32001,
        },
    },
}


def preset(name: str) -> VargptConfig:
    """The architecture called `tiny` (CPU, digits) or `7b` (9.28 B parameters, the published weights)."""
    if name not in PRESETS:
        raise UserError(f"preset must be one of {sorted(PRESETS)}, got {name!r}")
    return VargptConfig(**PRESETS[name])
