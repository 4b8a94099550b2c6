"""The two parts that transformers implements: vision tower (CLIP) and language model (LLaMA)."""

from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from model.text_head import TextHead, with_text_head
from model.training_attention import sample_bounds

# Shape legend: B = batch, T = positions, D = language model width, I = input images, P = positions of one
# image, W = vision width.


class VisionTower(nn.Module):
    """CLIP's image encoder; its output is one of the hidden layers, with or without the class token.

    Args:
        layer: Index into transformers' `hidden_states`; -2 is the output of the last layer but one.
        strategy: `default` drops the class token, `full` keeps it, as LLaVA names them.
    """

    def __init__(self, config: CLIPVisionConfig, layer: int, strategy: str) -> None:
        super().__init__()
        self.clip = CLIPVisionModel(config)
        self.layer, self.strategy = layer, strategy

    def forward(self, pixels_I3HW: Tensor) -> Tensor:
        """Features (I, P, W) of normalised pixels, before CLIP's last layer norm, as in LLaVA."""
        hidden_IPW = self.clip(pixels_I3HW, output_hidden_states=True).hidden_states[self.layer]
        return hidden_IPW if self.strategy == "full" else hidden_IPW[:, 1:]


class LanguageModel(LlamaForCausalLM):
    """LLaMA with its head, called with embeddings, because images stand between words."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.lm_head: TextHead = with_text_head(self.get_output_embeddings())

    def states(self, embedded_BTD: Tensor, position_ids: Tensor | None = None, **arguments: Tensor) -> Tensor:
        """Last hidden states, after the final norm, (B, T, D); further arguments are those of LlamaModel.

        Args:
            position_ids: (1, T), of a row that holds several samples: starting anew with each.
        """
        bounds = sample_bounds(self.config._attn_implementation, position_ids)
        return self.model(
            inputs_embeds=embedded_BTD, position_ids=position_ids, **bounds, **arguments
        ).last_hidden_state
