"""Generation projectors as a tiny model begins stage 1: they carry tokens through the language model.

From random projectors the first steps of stage 1 go into finding out that a token should stay what it is:
cross-entropy of codes begins at 8.9 and comes to 5.0 after 80 steps, but begins at 4.5 like this and comes to
3.7 after 60 (docs/tiny.md).
"""

import torch
from torch import Tensor

from model.errors import UserError
from model.modeling import VargptForConditionalGeneration
from model.projectors import Projector

# Shape legend: G = pyramids, L = their tokens, H I O = hidden, input and output width of a projector.

# Above it GELU is nearly a straight line.
LINEAR_FROM = 3.0
# Standard deviation of tokens in the language model, whose layers add their own to them.
LOUDNESS = 5.0
NUM_PYRAMIDS = 64


@torch.no_grad()
def initialize_projectors(model: VargptForConditionalGeneration) -> None:
    """Set both projectors so that the decoder sees the tokens it knows, but for what the language model adds.

    Raises ValueError when the decoder is wider than the language model.
    """
    decoder_width, language_width = model.config.visual_decoder_config.width, model.config.hidden_size
    if decoder_width > language_width:
        raise UserError(
            f"visual_decoder_config.width {decoder_width} must not exceed "
            f"text_config.hidden_size {language_width}"
        )
    std = float(_tokens(model).std())
    _make_linear(model.generation_input_projector, torch.tensor(1 / std), LOUDNESS)
    # The last norm makes up for the width that tokens leave empty, and scales by its weights.
    filled = (decoder_width / language_width) ** 0.5
    norm_I = model.language_model.model.norm.weight
    _make_linear(model.generation_output_projector, filled / norm_I, std)


def _tokens(model: VargptForConditionalGeneration) -> Tensor:
    """Pyramids of any codes as the decoder knows them, (G, L, C)."""
    generator = torch.Generator().manual_seed(0)
    codebook = model.config.image_tokenizer_config.codebook_size
    codes_GL = torch.randint(codebook, (NUM_PYRAMIDS, model.config.num_image_tokens), generator=generator)
    return model.embed_images(model.image_tokenizer.decoder_input(codes_GL.to(model.device)))[0]


def _make_linear(projector: Projector, gain_in_I: Tensor, gain_out: float) -> None:
    """Input times both gains, as far as it is within the straight part of GELU."""
    first_HI, second_OH = projector.first.weight, projector.second.weight
    first_HI.copy_(torch.eye(*first_HI.shape) * gain_in_I)
    second_OH.copy_(torch.eye(*second_OH.shape) * gain_out)
    projector.first.bias.fill_(LINEAR_FROM)
    projector.second.bias.copy_(-second_OH @ projector.first.bias)
