"""VARGPT: vision tower, language model, visual decoder and image tokenizer, joined by three projectors.

Text is predicted token by token. An image that is drawn takes `num_image_tokens` positions of the language
model: its tokens enter there through the generation input projector, and the hidden states of the same
positions leave through the generation output projector to the visual decoder, which predicts the codes of
these positions.

Source: arXiv:2501.12327 and the released modeling_vargpt_llava.py.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from model.backbones import LanguageModel, VisionTower
from model.config import VargptConfig
from model.errors import UserError
from model.image_tokenizer import ImageTokenizer, TeacherForcing, teacher_forcing
from model.projectors import GenerationInputProjector, GenerationOutputProjector, UnderstandingProjector
from model.visual_decoder import DecoderCache, VisualDecoder

# Shape legend: B = batch, T = positions of the sequence, D = language model width, I = input images,
# G = drawn images, L = image tokens, M = L - 1, N = image tokens fed now, C = decoder width, Z = latent
# channels, V = codebook size.


# The parts of the model, by the names of its modules.
PARTS = (
    "vision_tower",
    "understanding_projector",
    "language_model",
    "generation_input_projector",
    "generation_output_projector",
    "visual_decoder",
    "image_tokenizer",
)


@dataclass(frozen=True, kw_only=True)
class TargetImages:
    """The images that a batch should draw, as pixels or as codes, and how they are taught.

    Args:
        pixels: (G, 3, H, W) in [-1, 1].
        codes: (G, L), in place of pixels.
        unconditional: (G,) True where the image opens with the null start, for classifier-free guidance.
        replacements, softness: As in `teacher_forcing`; they need pixels.
    """

    pixels: Tensor | None = None
    codes: Tensor | None = None
    unconditional: Tensor | None = None
    replacements: Tensor | None = None
    softness: float = 0.0

    def __post_init__(self) -> None:
        if self.codes is None:
            return
        if self.pixels is not None and len(self.pixels):
            raise UserError("give codes or generation_pixel_values, not both")
        if self.softness or (self.replacements is not None and len(self.replacements)):
            raise UserError("replacements and softness go with generation_pixel_values, not with codes")

    @property
    def count(self) -> int:
        """How many images there are."""
        images = self.pixels if self.codes is None else self.codes
        return 0 if images is None else len(images)


@dataclass(frozen=True)
class Prediction:
    """Result of a teacher-forced pass.

    Last hidden states of the language model, (B, T, D); and, where there are images to draw, the logits of
    their codes, (G, L, V), the right codes, (G, L), and soft labels, (G, L, V), where targets are soft.
    `idle_logits` are those of no image: the decoder ran for its own sake (`force_all_modules`).
    """

    hidden: Tensor
    image_logits: Tensor | None = None
    image_codes: Tensor | None = None
    image_soft_targets: Tensor | None = None
    idle_logits: Tensor | None = None


class Vargpt(PreTrainedModel):
    """All parts of the model, and the teacher-forced pass through them."""

    config_class = VargptConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    output_modalities = ("image", "text")
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    supports_gradient_checkpointing = True
    _tied_weights_keys: ClassVar[dict[str, str]] = {}
    # Whatever type the model is loaded in: in bfloat16 3 of 100 codes of an image come out differently.
    _keep_in_fp32_modules_strict: ClassVar[set[str]] = {"image_tokenizer"}

    def __init__(self, config: VargptConfig) -> None:
        super().__init__(config)
        width = config.visual_decoder_config.width
        self.vision_tower = VisionTower(
            config.vision_config, config.vision_feature_layer, config.vision_feature_select_strategy
        )
        self.understanding_projector = UnderstandingProjector(
            config.vision_config.hidden_size, config.hidden_size
        )
        self.language_model = LanguageModel(config.text_config)
        self.generation_input_projector = GenerationInputProjector(width, config.hidden_size)
        self.generation_output_projector = GenerationOutputProjector(config.hidden_size, width)
        self.visual_decoder = VisualDecoder(config.visual_decoder_config, config.image_tokenizer_config)
        self.image_tokenizer = ImageTokenizer(config.image_tokenizer_config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        # These two have initial values of their own, or published weights.
        own = (*self.visual_decoder.modules(), *self.image_tokenizer.modules())
        if not any(module is part for part in own):
            super()._init_weights(module)

    def image_features(self, pixels_I3HW: Tensor) -> Tensor:
        """Input images as embeddings for the language model, (I * positions, D).

        UserError for images of another size than the vision tower's.
        """
        size = self.config.vision_config.image_size
        if pixels_I3HW.shape[1:] != (3, size, size):
            shape = tuple(pixels_I3HW.shape)
            raise UserError(f"pixel_values must be (images, 3, {size}, {size}), got {shape}")
        return self.understanding_projector(self.vision_tower(pixels_I3HW)).flatten(0, 1)

    def start_condition(self, count: int, unconditional_G: Tensor | None = None) -> Tensor:
        """Start embeddings of images, which are their conditions, (G, C); null where unconditional."""
        decoder = self.config.visual_decoder_config
        rows_G = torch.full((count,), decoder.image_start, device=self.device)
        if unconditional_G is not None:
            rows_G = torch.where(unconditional_G, decoder.null_start, rows_G)
        return self.visual_decoder.start_embedding(rows_G)

    def embed_images(
        self, decoder_input_GMZ: Tensor, unconditional_G: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Embedded tokens of images to draw, (G, L, C), and their conditions, (G, C), for teacher forcing.

        The input is that of `ImageTokenizer.decoder_input`.
        """
        cond_GC = self.start_condition(len(decoder_input_GMZ), unconditional_G)
        return self.visual_decoder.embed(cond_GC, decoder_input_GMZ), cond_GC

    def embed(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        image_tokens_GLC: Tensor | None = None,
        idle_pixels: Tensor | None = None,
        idle_tokens_GLC: Tensor | None = None,
    ) -> Tensor:
        """Embeddings of words, input images and images to draw, each at its positions, (B, T, D).

        UserError when images and their positions in `input_ids` differ in number.

        Args:
            idle_pixels, idle_tokens_GLC: In place of images that a batch lacks: their modules run, in the
                same order as with images, with no effect.
        """
        embedded_BTD = self.language_model.get_input_embeddings()(input_ids)
        features = projected = None
        if pixel_values is not None and len(pixel_values):
            features = self.image_features(pixel_values)
        elif idle_pixels is not None:
            embedded_BTD = without_effect(embedded_BTD, self.image_features(idle_pixels))
        if image_tokens_GLC is not None:
            projected = self.generation_input_projector(image_tokens_GLC).flatten(0, 1)
        elif idle_tokens_GLC is not None:
            embedded_BTD = without_effect(embedded_BTD, self.generation_input_projector(idle_tokens_GLC))
        is_input_BT = input_ids == self.config.image_token_id
        is_drawn_BT = input_ids == self.config.image_pad_token_id
        embedded_BTD = _put(embedded_BTD, is_input_BT, features, "pixel_values")
        return _put(embedded_BTD, is_drawn_BT, projected, "generation_pixel_values")

    def image_logits(self, hidden_GND: Tensor, cond_GC: Tensor, cache: DecoderCache | None = None) -> Tensor:
        """Language model states at image positions -> logits of the codes there, (G, N, V)."""
        return self.visual_decoder.predict(self.generation_output_projector(hidden_GND), cond_GC, cache)

    def text_logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits for states of any leading shape."""
        return self.language_model.lm_head(hidden)

    def predict(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        target_images: TargetImages | None = None,
        position_ids: Tensor | None = None,
        force_all_modules: bool = False,
    ) -> Prediction:
        """Teacher-forced pass over sequences with any number of input images and images to draw each.

        Rows of several samples (`batches.packed`) have positions, (B, T), that start anew with each, and no
        attention mask.

        Args:
            force_all_modules: Run those too for which the batch has no images, with no effect.
        """
        targets = image_tokens_GLC = cond_GC = idle_tokens_GLC = None
        if target_images is not None and target_images.count:
            targets = self._teacher_forcing(target_images)
            image_tokens_GLC, cond_GC = self.embed_images(targets.decoder_input, target_images.unconditional)
        elif force_all_modules:
            idle_tokens_GLC, cond_GC = self.embed_images(self._idle_decoder_input())
        idle_pixels = self._idle_pixels() if force_all_modules else None
        embedded_BTD = self.embed(input_ids, pixel_values, image_tokens_GLC, idle_pixels, idle_tokens_GLC)
        hidden_BTD = self.language_model.states(
            embedded_BTD, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
        )
        if idle_tokens_GLC is not None:
            idle_GLD = hidden_BTD[:1, :1].expand(1, self.config.num_image_tokens, -1)
            return Prediction(hidden_BTD, idle_logits=self.image_logits(idle_GLD, cond_GC))
        if targets is None:
            return Prediction(hidden_BTD)
        is_drawn_BT = input_ids == self.config.image_pad_token_id
        drawn_GLD = hidden_BTD[is_drawn_BT].unflatten(0, targets.codes.shape)
        logits_GLV = self.image_logits(drawn_GLD, cond_GC)
        return Prediction(hidden_BTD, logits_GLV, targets.codes, targets.soft_targets)

    def _idle_pixels(self) -> Tensor:
        """One black input image."""
        size = self.config.vision_config.image_size
        return torch.zeros(1, 3, size, size, device=self.device, dtype=self.dtype)

    def _idle_decoder_input(self) -> Tensor:
        """The decoder's input for one image whose vectors are all zero."""
        length, width = self.config.num_image_tokens - 1, self.config.image_tokenizer_config.latent_dim
        return torch.zeros(1, length, width, device=self.device)

    @torch.no_grad()
    def _teacher_forcing(self, images: TargetImages) -> TeacherForcing:
        if images.codes is not None:
            return TeacherForcing(images.codes, self.image_tokenizer.decoder_input(images.codes))
        return teacher_forcing(self.image_tokenizer, images.pixels, images.replacements, images.softness)


def without_effect(x: Tensor, unused: Tensor) -> Tensor:
    """x, on which `unused` now depends with a gradient of zero."""
    return x + 0 * unused.sum().to(x.dtype)


def _put(embedded_BTD: Tensor, is_image_BT: Tensor, vectors: Tensor | None, name: str) -> Tensor:
    """Embeddings with the vectors of images at their positions, in order."""
    num_positions = int(is_image_BT.sum())
    if vectors is None:
        if num_positions:
            raise UserError(f"input_ids have {num_positions} image positions, but {name} are missing")
        return embedded_BTD
    if num_positions != len(vectors):
        raise UserError(f"{name} fill {len(vectors)} positions, but input_ids have {num_positions} for them")
    return embedded_BTD.masked_scatter(is_image_BT[..., None], vectors.to(embedded_BTD.dtype))
