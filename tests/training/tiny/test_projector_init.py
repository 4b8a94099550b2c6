"""Laws of the initial projectors: image tokens come out of the language model as they went in."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from model.config import preset
from model.modeling import VargptForConditionalGeneration
from training.tiny.projector_init import initialize_projectors


def model_with_identity_layers(width: int) -> VargptForConditionalGeneration:
    """A tiny model whose language model adds nothing to its input."""
    config = preset("tiny")
    config.visual_decoder_config.width = width
    torch.manual_seed(0)
    model = VargptForConditionalGeneration(config).eval()
    model.visual_decoder.initialize()
    for layer in model.language_model.model.layers:
        nn.init.zeros_(layer.self_attn.o_proj.weight)
        nn.init.zeros_(layer.mlp.down_proj.weight)
    nn.init.uniform_(model.language_model.model.norm.weight, 0.5, 2.0)
    return model


@torch.no_grad()
def tokens_before_and_after(model: VargptForConditionalGeneration) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens of random pyramids, and the same after both projectors and the language model."""
    codebook = model.config.image_tokenizer_config.codebook_size
    codes_GL = torch.randint(codebook, (8, model.config.num_image_tokens))
    tokens_GLC = model.embed_images(model.image_tokenizer.decoder_input(codes_GL))[0]
    hidden_GLD = model.language_model.states(model.generation_input_projector(tokens_GLC), use_cache=False)
    return tokens_GLC, model.generation_output_projector(hidden_GLD)


@pytest.mark.parametrize("width", [96, 192])
def test_tokens_keep_their_direction_and_size_through_the_language_model(width):
    model = model_with_identity_layers(width)
    initialize_projectors(model)
    before_GLC, after_GLC = tokens_before_and_after(model)
    assert F.cosine_similarity(before_GLC, after_GLC, dim=-1).mean() > 0.99
    assert float(after_GLC.std() / before_GLC.std()) == pytest.approx(1, abs=0.15)


def test_random_projectors_do_not_preserve_tokens():
    before_GLC, after_GLC = tokens_before_and_after(model_with_identity_layers(96))
    assert F.cosine_similarity(before_GLC, after_GLC, dim=-1).mean().abs() < 0.3


def test_a_decoder_wider_than_the_language_model_is_refused_by_both_names():
    model = model_with_identity_layers(192)
    model.config.visual_decoder_config.width = 256
    with pytest.raises(ValueError, match=r"visual_decoder_config\.width 256 .* text_config\.hidden_size 192"):
        initialize_projectors(model)
