"""Models of some ten million parameters in several shapes, batches for them, and activation checkpointing."""

import functools

import torch
from torch.utils.checkpoint import checkpoint

from model.config import VargptConfig
from model.losses import IGNORED
from model.modeling import VargptForConditionalGeneration
from training.planning.operations import Unit

TOKENS = {"image_token_id": 3, "image_start_token_id": 4, "image_end_token_id": 5, "image_pad_token_id": 6}
TEXT = {"max_position_embeddings": 1024, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
FIRST_WORD = 10


def _config(vision, text, tokenizer, decoder, **others):
    return VargptConfig(
        vision_config=vision,
        text_config={**TEXT, **text},
        image_tokenizer_config=tokenizer,
        visual_decoder_config=decoder,
        **TOKENS,
        **others,
    )


SHAPES = {
    # Proportions of 7b, a tenth of its width.
    "as 7b": lambda: _config(
        {
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "image_size": 56,
            "patch_size": 14,
        },
        {
            "hidden_size": 416,
            "intermediate_size": 1088,
            "num_hidden_layers": 6,
            "num_attention_heads": 8,
            "num_key_value_heads": 8,
            "vocab_size": 4096,
        },
        {"scales": (1, 2, 3, 4, 6), "channels": (32, 32, 64), "codebook_size": 512},
        {"depth": 6, "width": 192, "num_heads": 3, "num_starts": 320, "drop_path": 0.1},
    ),
    # Few key-value heads, a class token that is kept, blocks of pixels, a wide decoder.
    "grouped queries": lambda: _config(
        {
            "hidden_size": 192,
            "intermediate_size": 384,
            "num_hidden_layers": 2,
            "num_attention_heads": 6,
            "image_size": 48,
            "patch_size": 8,
        },
        {
            "hidden_size": 320,
            "intermediate_size": 1536,
            "num_hidden_layers": 4,
            "num_attention_heads": 10,
            "num_key_value_heads": 2,
            "vocab_size": 2048,
        },
        {
            "scales": (1, 2, 4, 8),
            "channels": (24, 48),
            "codebook_size": 1024,
            "encoder_blocks": 1,
            "decoder_blocks": 2,
            "num_refiners": 3,
            "pixel_block": 2,
            "norm_groups": 8,
        },
        {"depth": 5, "width": 384, "num_heads": 12, "num_starts": 2, "drop_path": 0.0},
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    ),
}


@functools.cache
def build(shape):
    """A model of this shape with random weights; callers freeze it as they like."""
    torch.manual_seed(0)
    model = VargptForConditionalGeneration(SHAPES[shape]())
    model.visual_decoder.initialize()
    return model


def batch_of(config, *, texts=0, pictures=0, drawings=0, length=112, targets=16):
    """Samples of one length: so many of text, with a picture as input, with a picture to draw (as codes).

    Returns the arguments of `loss_sums`, and how many units of each kind they are.
    """
    generator = torch.Generator().manual_seed(0)
    count = texts + pictures + drawings
    ids = torch.randint(FIRST_WORD, config.text_config.vocab_size, (count, length), generator=generator)
    ids[texts : texts + pictures, 1 : 1 + config.num_vision_tokens] = config.image_token_id
    ids[texts + pictures :, 1 : 1 + config.num_image_tokens] = config.image_pad_token_id
    labels = torch.full_like(ids, IGNORED)
    labels[:, length - targets :] = ids[:, length - targets :]
    size = config.vision_config.image_size
    codebook = config.image_tokenizer_config.codebook_size
    batch = {
        "input_ids": ids,
        "labels": labels,
        "pixel_values": torch.randn(pictures, 3, size, size, generator=generator),
        "codes": torch.randint(codebook, (drawings, config.num_image_tokens), generator=generator),
    }
    units = {
        Unit.POSITION: count * length,
        Unit.SQUARED_POSITION: count * length**2,
        Unit.TARGET: count * targets,
        Unit.INPUT_IMAGE: pictures,
        Unit.DRAWN_IMAGE: drawings,
        Unit.DRAWING_PASS: int(drawings > 0),
    }
    return batch, units


def as_pixels(config, batch):
    """The same batch with random pixels in place of codes."""
    size = config.image_size
    pixels = (
        torch.rand(len(batch["codes"]), 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1
    )
    return {
        **{name: value for name, value in batch.items() if name != "codes"},
        "generation_pixel_values": pixels,
    }


def checkpoint_blocks(model, monkeypatch):
    """Blocks of language model and visual decoder keep their input only and are computed again for the
    gradient.
    """
    for block in [*model.language_model.model.layers, *model.visual_decoder.blocks]:
        again = functools.partial(checkpoint, block.forward, use_reentrant=False)
        monkeypatch.setattr(block, "forward", again)
