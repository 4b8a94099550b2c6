"""The two parts that transformers builds: vision tower (CLIP) and language model (LLaMA)."""

from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

# Shape legend: I = input images, P = positions of one image, D = vision width.


class VisionTower(nn.Module):
    """CLIP's image encoder; hands out one of its hidden layers, with or without the class token."""

    def __init__(self, config: CLIPVisionConfig, layer: int, strategy: str) -> None:
        super().__init__()
        self.clip = CLIPVisionModel(config)
        self.layer, self.strategy = layer, strategy

    def forward(self, pixels_I3HW: Tensor) -> Tensor:
        """Features (I, P, D) of normalised pixels; no post-norm, as LLaVA takes them."""
        hidden = self.clip(pixels_I3HW, output_hidden_states=True).hidden_states[self.layer]
        return hidden if self.strategy == "full" else hidden[:, 1:]


class LanguageModel(LlamaForCausalLM):
    """LLaMA with its head, fed with embeddings so that images can stand between words."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)

    def states(self, embedded_BTD: Tensor, **arguments: Tensor) -> Tensor:
        """Last hidden states after the final norm, (B, T, D)."""
        return self.model(inputs_embeds=embedded_BTD, **arguments).last_hidden_state
