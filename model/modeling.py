"""The model that transformers knows: forward pass with losses, and `generate`; registered with the Auto
classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, AutoModelForMultimodalLM
from transformers.utils import ModelOutput

from model.config import VargptConfig
from model.errors import UserError
from model.generation.generate import Reply, Request, generate
from model.losses import IGNORED, LossSums, image_loss, text_loss
from model.vargpt import Prediction, TargetImages, Vargpt, without_effect

# Shape legend: B = batch, T = positions, D = language model width, G = drawn images, L = image tokens,
# V = vocabulary or codebook size, P = supervised positions.

# Whether the text loss has a gradient, is computed without one, or not at all.
TextLoss = Literal["learned", "measured", "none"]


@dataclass
class VargptOutput(ModelOutput):
    """Logits of words (B, T, V) and of codes (G, L, V), the right codes (G, L); losses where labels are
    given.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    image_logits: Tensor | None = None
    image_codes: Tensor | None = None
    text_loss: Tensor | None = None
    image_loss: Tensor | None = None


class VargptForConditionalGeneration(Vargpt):
    """VARGPT with its losses and its `generate`."""

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        generation_pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        codes: Tensor | None = None,
        unconditional: Tensor | None = None,
        position_ids: Tensor | None = None,
        force_all_modules: bool = False,
    ) -> VargptOutput:
        """Teacher-forced pass over a batch of any kinds of samples: understanding, drawing, mixed, text only.

        Args:
            pixel_values: Input images, normalised as for CLIP, (I, 3, H, W).
            generation_pixel_values: Images to draw, in [-1, 1], (G, 3, H, W).
            labels: Token ids to predict, (B, T), -100 where nothing is supervised: prompts, padding, image
                positions.
            codes: Images to draw as codes, (G, L), in place of their pixels.
            unconditional: (G,) True where an image to draw opens with the null start.
            position_ids: (B, T), of rows that hold several samples (`batches.packed`).
            force_all_modules: As in `loss_sums`.
        """
        targets = TargetImages(pixels=generation_pixel_values, codes=codes, unconditional=unconditional)
        prediction = self.predict(
            input_ids, attention_mask, pixel_values, targets, position_ids, force_all_modules
        )
        logits = self.text_logits(prediction.hidden)
        output = VargptOutput(
            logits=logits, image_logits=prediction.image_logits, image_codes=prediction.image_codes
        )
        if labels is not None:
            is_supervised, targets_P = _next_tokens(input_ids, labels)
            text, num_text = text_loss(logits[:, :-1][is_supervised], targets_P)
            sums = self._with_image_loss(prediction, text, num_text)
            output.loss = sums.mean()
            output.text_loss = sums.text_mean
            output.image_loss = sums.image_mean
        return output

    def loss_sums(
        self,
        input_ids: Tensor,
        labels: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        *,
        generation_pixel_values: Tensor | None = None,
        codes: Tensor | None = None,
        unconditional: Tensor | None = None,
        replacements: Tensor | None = None,
        softness: float = 0.0,
        position_ids: Tensor | None = None,
        text: TextLoss = "learned",
        force_all_modules: bool = False,
    ) -> LossSums:
        """Sums and counts for training, of a batch as `batches` makes it.

        The head is applied at supervised positions only, which saves most of its time, and never to all of
        them at once (`TextHead`). Other arguments are those of `forward` and of `TargetImages`.

        Args:
            text: `measured` computes the text loss without a gradient, for where text has no weight; `none`
                does not compute it, and counts no text.
            force_all_modules: Run those too for which the batch has no images, so that every weight has a
                gradient, of zero at least. Engines that exchange weights or gradients module by module need
                that when the batches of processes differ in kind.
        """
        targets = TargetImages(
            pixels=generation_pixel_values,
            codes=codes,
            unconditional=unconditional,
            replacements=replacements,
            softness=softness,
        )
        prediction = self.predict(
            input_ids, attention_mask, pixel_values, targets, position_ids, force_all_modules
        )
        nats, num_text = self._text_loss(prediction.hidden, input_ids, labels, text)
        return self._with_image_loss(prediction, nats, num_text)

    def _text_loss(
        self, hidden_BTD: Tensor, input_ids: Tensor, labels: Tensor, use: TextLoss
    ) -> tuple[Tensor, Tensor]:
        is_supervised, targets_P = _next_tokens(input_ids, labels)
        num_text = torch.tensor(len(targets_P), device=hidden_BTD.device)
        if use == "none":
            return hidden_BTD.new_zeros((), dtype=torch.float32), torch.zeros_like(num_text)
        with torch.set_grad_enabled(torch.is_grad_enabled() and use == "learned"):
            hidden_PD = hidden_BTD[:, :-1][is_supervised]
            return self.language_model.lm_head(hidden_PD, targets_P), num_text

    def _with_image_loss(self, prediction: Prediction, text: Tensor, num_text: Tensor) -> LossSums:
        scales = self.config.scales
        if prediction.image_logits is None:
            zeros = text.new_zeros(len(scales))
            if prediction.idle_logits is None:
                return LossSums(text, num_text, zeros, zeros)
            return LossSums(text, num_text, without_effect(zeros, prediction.idle_logits), zeros)
        soft_targets = prediction.image_soft_targets
        targets = prediction.image_codes if soft_targets is None else soft_targets
        image, num_image = image_loss(prediction.image_logits, targets, scales)
        return LossSums(text, num_text, image, num_image)

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        """Answer requests together; see `model.generation.generate`."""
        return generate(self, requests)


def _next_tokens(input_ids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Which positions have a supervised next token, (B, T - 1), and these next tokens, (P,)."""
    if labels.shape != input_ids.shape:
        raise UserError(f"labels are {tuple(labels.shape)}, but input_ids {tuple(input_ids.shape)}")
    is_supervised = labels[:, 1:] != IGNORED
    return is_supervised, labels[:, 1:][is_supervised]


AutoConfig.register(VargptConfig.model_type, VargptConfig)
AutoModelForMultimodalLM.register(VargptConfig, VargptForConditionalGeneration)
AutoModelForImageTextToText.register(VargptConfig, VargptForConditionalGeneration)
