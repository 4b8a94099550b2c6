"""Initial weights of the generation projectors of a tiny model: identity maps through the language model.

Random projectors must first learn that an image token should come out as it went in: the cross-entropy of
codes begins at 8.9 nats and reaches 5.0 after 80 steps of stage 1; from here it begins at 4.5 and reaches 3.7
after 60 (docs/tiny.md).
"""

import torch
from torch import Tensor

from model.errors import UserError
from model.modeling import VargptForConditionalGeneration
from model.projectors import Projector

# Shape legend: G = pyramids, L = their tokens, H I O = hidden, input and output width of a projector.

# Bias that shifts inputs to where GELU is nearly linear.
GELU_LINEAR_FROM = 3.0
# Standard deviation of image tokens in the language model, well above what its untrained layers add.
TOKEN_STD = 5.0
NUM_PYRAMIDS = 64


@torch.no_grad()
def initialize_projectors(model: VargptForConditionalGeneration) -> None:
    """Set both projectors so that the decoder gets its own tokens back, plus what the language model adds.

    Raises UserError when the decoder is wider than the language model.
    """
    decoder_width, language_width = model.config.visual_decoder_config.width, model.config.hidden_size
    if decoder_width > language_width:
        raise UserError(
            f"visual_decoder_config.width {decoder_width} must not exceed "
            f"text_config.hidden_size {language_width}"
        )
    std = float(_random_tokens(model).std())
    _make_linear(model.generation_input_projector, torch.tensor(1 / std), TOKEN_STD)
    # The language model's last norm divides by the root mean square over its width, of which tokens fill a
    # part, and multiplies by its weights.
    filled = (decoder_width / language_width) ** 0.5
    norm_I = model.language_model.model.norm.weight
    _make_linear(model.generation_output_projector, filled / norm_I, std)


def _random_tokens(model: VargptForConditionalGeneration) -> Tensor:
    """Embeddings that the decoder gives to pyramids of random codes, (G, L, C)."""
    generator = torch.Generator().manual_seed(0)
    codebook = model.config.image_tokenizer_config.codebook_size
    codes_GL = torch.randint(codebook, (NUM_PYRAMIDS, model.config.num_image_tokens), generator=generator)
    return model.embed_images(model.image_tokenizer.decoder_input(codes_GL.to(model.device)))[0]


def _make_linear(projector: Projector, gain_in_I: Tensor, gain_out: float) -> None:
    """Make a projector multiply by both gains, as long as its input stays in the linear part of GELU."""
    first_HI, second_OH = projector.first.weight, projector.second.weight
    first_HI.copy_(torch.eye(*first_HI.shape) * gain_in_I)
    second_OH.copy_(torch.eye(*second_OH.shape) * gain_out)
    projector.first.bias.fill_(GELU_LINEAR_FROM)
    projector.second.bias.copy_(-second_OH @ projector.first.bias)
