"""The transformers model: teacher-forced losses and `generate`, registered with the Auto classes."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, AutoModelForMultimodalLM
from transformers.utils import ModelOutput

from model.config import VargptConfig
from model.generation.generate import Reply, Request, generate
from model.losses import IGNORED, LossSums, image_loss, text_loss
from model.vargpt import Prediction, Vargpt

# Shape legend: B = batch, T = positions, G = drawn images, L = image tokens, V = vocabulary or codebook.


@dataclass
class VargptOutput(ModelOutput):
    """`logits` (B, T, V) of words, `image_logits` (G, L, V) of codes; loss and its parts when labels were
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
        dropped: Tensor | None = None,
    ) -> VargptOutput:
        """Teacher-forced pass over a batch that may mix understanding, drawing, interleaved and text-only
        samples.

        Args:
            labels: Token ids to predict, (B, T), -100 where nothing is asked: prompts, padding, image
            positions. codes: Drawn images as codes (G, L), instead of `generation_pixel_values` in [-1, 1].
            dropped: (G,) True where a drawn image opens with the null start.
        """
        prediction = self.predict(
            input_ids, attention_mask, pixel_values, generation_pixel_values, codes, dropped
        )
        logits = self.text_logits(prediction.hidden)
        output = VargptOutput(
            logits=logits, image_logits=prediction.image_logits, image_codes=prediction.image_codes
        )
        if labels is not None:
            asked = labels[:, 1:] != IGNORED
            sums = self._sums(prediction, logits[:, :-1][asked], labels[:, 1:][asked])
            output.loss = sums.mean()
            output.text_loss = sums.text / sums.num_text.clamp(min=1)
            output.image_loss = sums.image_by_scale.sum() / sums.num_image_by_scale.sum().clamp(min=1)
        return output

    def loss_sums(
        self,
        input_ids: Tensor,
        labels: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        generation_pixel_values: Tensor | None = None,
        codes: Tensor | None = None,
        dropped: Tensor | None = None,
        replacements: Tensor | None = None,
        softness: float = 0.0,
    ) -> LossSums:
        """Sums and counts for training; words are scored only where labels ask, which saves most of the head.
        `replacements` and `softness` as `Vargpt.predict` takes them.
        """
        prediction = self.predict(
            input_ids,
            attention_mask,
            pixel_values,
            generation_pixel_values,
            codes,
            dropped,
            replacements,
            softness,
        )
        asked = labels[:, 1:] != IGNORED
        logits_PV = self.text_logits(prediction.hidden[:, :-1][asked])
        return self._sums(prediction, logits_PV, labels[:, 1:][asked])

    def _sums(self, prediction: Prediction, logits_PV: Tensor, targets_P: Tensor) -> LossSums:
        text, num_text = text_loss(logits_PV, targets_P)
        scales = self.config.scales
        if prediction.image_logits is None:
            zeros = text.new_zeros(len(scales))
            return LossSums(text, num_text, zeros, zeros)
        soft_targets = prediction.image_soft_targets
        targets = prediction.image_codes if soft_targets is None else soft_targets
        image, num_image = image_loss(prediction.image_logits, targets, scales)
        return LossSums(text, num_text, image, num_image)

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        """Answer any mix of prompts; see `model.generation.generate`."""
        return generate(self, requests)


AutoConfig.register(VargptConfig.model_type, VargptConfig)
AutoModelForMultimodalLM.register(VargptConfig, VargptForConditionalGeneration)
AutoModelForImageTextToText.register(VargptConfig, VargptForConditionalGeneration)
