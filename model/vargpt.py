"""VARGPT: vision tower, language model and visual decoder joined by three projectors.

Source: arXiv:2501.12327; data flow of spec section 1.4. Text is predicted token by token; an image takes the
place of `num_image_tokens` positions, whose last hidden states the visual decoder turns into codes of the
same positions.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from model.backbones import LanguageModel, VisionTower
from model.config import VargptConfig
from model.errors import UserError
from model.image_tokenizer import ImageTokenizer, teacher_forcing
from model.projectors import GenerationInputProjector, GenerationOutputProjector, UnderstandingProjector
from model.visual_decoder import DecoderCache, VisualDecoder

# Shape legend: B = batch, T = positions of the sequence, D = language model width, I = input images,
# G = drawn images, L = image tokens, M = L - 1, C = decoder width, Z = latent channels, V = codebook size.


@dataclass(frozen=True)
class Prediction:
    """One teacher-forced pass: states (B, T, D), image logits (G, L, V) and the codes they should predict,
    (G, L), with soft_targets of all codes (G, L, V) where targets are soft.
    """

    hidden: Tensor
    image_logits: Tensor | None
    image_codes: Tensor | None
    image_soft_targets: Tensor | None = None


class Vargpt(PreTrainedModel):
    """The parts of the figure and how data flows between them."""

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
        # Both are trained from nothing or imported whole, by their own recipes; transformers must not touch
        # them.
        own = (*self.visual_decoder.modules(), *self.image_tokenizer.modules())
        if not any(module is part for part in own):
            super()._init_weights(module)

    def image_features(self, pixels_I3HW: Tensor) -> Tensor:
        """Input images as the language model reads them, (I * positions, D)."""
        return self.understanding_projector(self.vision_tower(pixels_I3HW)).flatten(0, 1)

    def start_condition(self, count: int, dropped_G: Tensor | None = None) -> Tensor:
        """The vector that opens `count` pyramids, (G, C); null where dropped."""
        decoder = self.config.visual_decoder_config
        rows_G = torch.full((count,), decoder.image_start, device=self.device)
        if dropped_G is not None:
            rows_G = torch.where(dropped_G, decoder.null_start, rows_G)
        return self.visual_decoder.start_embedding(rows_G)

    def embed(
        self, input_ids: Tensor, pixel_values: Tensor | None = None, pyramid_GLC: Tensor | None = None
    ) -> Tensor:
        """Words, input images and pyramids in their places, (B, T, D).

        Raises ValueError when images and placeholders do not count up.
        """
        embedded_BTD = self.language_model.get_input_embeddings()(input_ids)
        if pixel_values is not None and len(pixel_values):
            features = self.image_features(pixel_values)
            embedded_BTD = self._place(
                embedded_BTD, input_ids == self.config.image_token_id, features, "pixel_values"
            )
        else:
            self._refuse(input_ids, self.config.image_token_id, "pixel_values")
        if pyramid_GLC is not None:
            projected = self.generation_input_projector(pyramid_GLC).flatten(0, 1)
            spots_BT = input_ids == self.config.image_pad_token_id
            return self._place(embedded_BTD, spots_BT, projected, "generation_pixel_values")
        self._refuse(input_ids, self.config.image_pad_token_id, "generation_pixel_values")
        return embedded_BTD

    @staticmethod
    def _place(embedded_BTD: Tensor, spots_BT: Tensor, rows: Tensor, name: str) -> Tensor:
        if int(spots_BT.sum()) != len(rows):
            raise UserError(
                f"{name} fill {len(rows)} positions, but input_ids have {int(spots_BT.sum())} for them"
            )
        return embedded_BTD.masked_scatter(spots_BT[..., None], rows.to(embedded_BTD.dtype))

    @staticmethod
    def _refuse(input_ids: Tensor, token_id: int, name: str) -> None:
        count = int((input_ids == token_id).sum())
        if count:
            raise UserError(f"input_ids have {count} image positions, but {name} are missing")

    def pyramid(
        self, codes_GL: Tensor, dropped_G: Tensor | None = None, seen_GMZ: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Teacher-forcing tokens of drawn images, (G, L, C), and their conditions, (G, C).

        `seen_GMZ` is the teacher-forcing input where it is not that of the codes themselves.
        """
        if seen_GMZ is None:
            with torch.no_grad():
                seen_GMZ = self.image_tokenizer.quantizer.seen(self.image_tokenizer.split(codes_GL))
        cond_GC = self.start_condition(len(codes_GL), dropped_G)
        return self.visual_decoder.embed(cond_GC, seen_GMZ), cond_GC

    def image_logits(self, hidden_NLD: Tensor, cond_GC: Tensor, cache: DecoderCache | None = None) -> Tensor:
        """Language model states at image positions -> logits of the codes there, (G, N, V)."""
        return self.visual_decoder.predict(self.generation_output_projector(hidden_NLD), cond_GC, cache)

    def text_logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits for states of any leading shape."""
        return self.language_model.lm_head(hidden)

    def predict(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        generation_pixel_values: Tensor | None = None,
        codes_GL: Tensor | None = None,
        dropped_G: Tensor | None = None,
        replacements_GL: Tensor | None = None,
        softness: float = 0.0,
    ) -> Prediction:
        """Teacher-forced pass over sequences with any number of input and drawn images each.

        Drawn images come as pixels in [-1, 1] or as codes; `dropped_G` opens those pyramids with the null
        start. `replacements_GL`, for pixels only, are codes drawn in place of the right ones, -1 where none:
        what is predicted then makes up for them, with soft targets where `softness` is above 0. Raises
        ValueError when they come with codes.
        """
        if codes_GL is not None and replacements_GL is not None:
            raise UserError("replacements go with generation_pixel_values, not with codes")
        seen_GMZ = soft_targets_GLV = None
        if codes_GL is None and generation_pixel_values is not None and len(generation_pixel_values):
            codes_GL, seen_GMZ, soft_targets_GLV = teacher_forcing(
                self.image_tokenizer, generation_pixel_values, replacements_GL, softness
            )
        pyramid_GLC = cond_GC = None
        if codes_GL is not None and len(codes_GL):
            pyramid_GLC, cond_GC = self.pyramid(codes_GL, dropped_G, seen_GMZ)
        embedded_BTD = self.embed(input_ids, pixel_values, pyramid_GLC)
        hidden_BTD = self.language_model.states(embedded_BTD, attention_mask=attention_mask, use_cache=False)
        if pyramid_GLC is None:
            return Prediction(hidden_BTD, None, None)
        drawn_GLD = hidden_BTD[input_ids == self.config.image_pad_token_id].unflatten(0, codes_GL.shape)
        return Prediction(hidden_BTD, self.image_logits(drawn_GLD, cond_GC), codes_GL, soft_targets_GLV)
