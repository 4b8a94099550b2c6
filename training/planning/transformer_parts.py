"""Operations of vision tower, projectors, language model and visual decoder, from the configuration alone.

Widths and paths are those of model/vargpt.py, and of CLIP and LLaMA in transformers; a test compares both
with a real model.
"""

from collections.abc import Iterator
from dataclasses import replace

from model.config import VargptConfig
from training.planning.operations import Applied, Operation, Reads, Unit

# Operations of one position or picture; those of a picture take its positions as rows.
POSITIONS = Applied(Unit.POSITION, in_block=True)


def vision_tower(config: VargptConfig) -> Iterator[Operation]:
    """CLIP's image encoder: all of its layers run, whichever of them is read."""
    vision = config.vision_config
    width, patches = vision.hidden_size, (vision.image_size // vision.patch_size) ** 2
    picture = Applied(Unit.INPUT_IMAGE, rows=patches + 1)
    clip = "vision_tower.clip"
    yield picture.table(f"{clip}.embeddings.class_embedding", width)
    yield picture.linear(
        f"{clip}.embeddings.patch_embedding",
        vision.num_channels * vision.patch_size**2,
        width,
        bias=False,
        rows=patches,
    )
    yield picture.table(f"{clip}.embeddings.position_embedding", (patches + 1) * width)
    yield picture.table(f"{clip}.pre_layrnorm", 2 * width)
    for index in range(vision.num_hidden_layers):
        layer = f"{clip}.encoder.layers.{index}"
        yield picture.table(f"{layer}.layer_norm1", 2 * width)
        for name in ("q_proj", "k_proj", "v_proj"):
            reads = Reads.BEFORE if name == "q_proj" else Reads.SAME
            yield picture.linear(f"{layer}.self_attn.{name}", width, width, reads=reads)
        yield picture.attention(f"{layer}.self_attn", width, patches + 1)
        yield picture.linear(f"{layer}.self_attn.out_proj", width, width)
        yield picture.table(f"{layer}.layer_norm2", 2 * width)
        yield picture.linear(f"{layer}.mlp.fc1", width, vision.intermediate_size)
        yield picture.linear(f"{layer}.mlp.fc2", vision.intermediate_size, width)
    yield picture.table(f"{clip}.post_layernorm", 2 * width)


def projector(path: str, inputs: int, hidden: int, outputs: int, applied: Applied) -> Iterator[Operation]:
    """Linear, activation, linear."""
    yield applied.linear(f"{path}.first", inputs, hidden)
    yield applied.pointwise(f"{path}.gelu", hidden)
    yield applied.linear(f"{path}.second", hidden, outputs)


def understanding_projector(config: VargptConfig) -> Iterator[Operation]:
    """Vision features to the language model's width."""
    applied = Applied(Unit.INPUT_IMAGE, rows=config.num_vision_tokens)
    width = config.hidden_size
    yield from projector("understanding_projector", config.vision_config.hidden_size, width, width, applied)


def generation_input_projector(config: VargptConfig) -> Iterator[Operation]:
    """Embedded image tokens to the language model's width."""
    applied = Applied(Unit.DRAWN_IMAGE, rows=config.num_image_tokens)
    width = config.visual_decoder_config.width
    yield from projector("generation_input_projector", width, width, config.hidden_size, applied)


def generation_output_projector(config: VargptConfig) -> Iterator[Operation]:
    """States of the language model to the visual decoder's width."""
    applied = Applied(Unit.DRAWN_IMAGE, rows=config.num_image_tokens)
    width = config.visual_decoder_config.width
    yield from projector(
        "generation_output_projector", config.hidden_size, config.hidden_size, width, applied
    )


def word_embeddings(config: VargptConfig) -> Iterator[Operation]:
    """The embeddings of words."""
    text = config.text_config
    yield Applied(Unit.POSITION).table(
        "language_model.model.embed_tokens", text.vocab_size * text.hidden_size
    )


def language_layers(config: VargptConfig) -> Iterator[Operation]:
    """The layers of LLaMA and its last norm."""
    text = config.text_config
    width, hidden = text.hidden_size, text.intermediate_size
    head = getattr(text, "head_dim", None) or width // text.num_attention_heads
    heads, shared = text.num_attention_heads * head, text.num_key_value_heads * head
    pairs = Applied(Unit.SQUARED_POSITION, in_block=True)
    for index in range(text.num_hidden_layers):
        layer = f"language_model.model.layers.{index}"
        attention, mlp = f"{layer}.self_attn", f"{layer}.mlp"
        yield POSITIONS.block_input(layer, width)
        yield POSITIONS.rms_norm(f"{layer}.input_layernorm", width)
        yield POSITIONS.linear(f"{attention}.q_proj", width, heads, bias=False)
        yield POSITIONS.linear(f"{attention}.k_proj", width, shared, bias=False, reads=Reads.SAME)
        yield POSITIONS.linear(f"{attention}.v_proj", width, shared, bias=False, reads=Reads.SAME)
        # Queries, keys, values, result, and a sum for each head.
        yield POSITIONS.pointwise(
            f"{attention}.softmax", 2 * heads + 2 * shared, floats=text.num_attention_heads
        )
        yield pairs.attention(attention, heads)
        yield POSITIONS.linear(f"{attention}.o_proj", heads, width, bias=False, is_input_kept=True)
        yield POSITIONS.rms_norm(f"{layer}.post_attention_layernorm", width)
        yield POSITIONS.linear(f"{mlp}.gate_proj", width, hidden, bias=False)
        yield POSITIONS.linear(f"{mlp}.up_proj", width, hidden, bias=False, reads=Reads.SAME)
        # Both, and the first after its activation.
        yield POSITIONS.pointwise(f"{mlp}.act_fn", 3 * hidden)
        yield POSITIONS.linear(f"{mlp}.down_proj", hidden, width, bias=False, ends_block=True)
    yield Applied(Unit.POSITION).rms_norm("language_model.model.norm", width)


def language_head(config: VargptConfig) -> Iterator[Operation]:
    """Logits of words, at supervised positions only, and their loss in float32."""
    text, targets = config.text_config, Applied(Unit.TARGET)
    yield targets.linear("language_model.lm_head", text.hidden_size, text.vocab_size, bias=False)
    yield targets.pointwise("language_model.loss", 0, floats=text.vocab_size)


def decoder_embeddings(config: VargptConfig) -> Iterator[Operation]:
    """What the visual decoder makes of the codes before the language model sees them."""
    decoder, tokenizer = config.visual_decoder_config, config.image_tokenizer_config
    width, tokens = decoder.width, config.num_image_tokens
    picture = Applied(Unit.DRAWN_IMAGE)
    yield picture.table("visual_decoder.start_embedding", decoder.num_starts * width)
    yield picture.table("visual_decoder.start_position", width)
    yield picture.table("visual_decoder.position", tokens * width)
    yield picture.table("visual_decoder.scale_embedding", len(config.scales) * width)
    yield picture.linear("visual_decoder.word_embedding", tokenizer.latent_dim, width, rows=tokens - 1)


def decoder_blocks(config: VargptConfig) -> Iterator[Operation]:
    """The blocks of the visual decoder; their modulation is computed once for a picture, before them."""
    decoder, tokens = config.visual_decoder_config, config.num_image_tokens
    width, hidden, heads = decoder.width, decoder.mlp_ratio * decoder.width, decoder.num_heads
    token, once = Applied(Unit.DRAWN_IMAGE, rows=tokens, in_block=True), Applied(Unit.DRAWN_IMAGE)
    mask = Applied(Unit.DRAWING_PASS, in_block=True)
    for index in range(decoder.depth):
        block = f"visual_decoder.blocks.{index}"
        modulation, attention = f"{block}.modulation", f"{block}.attention"
        yield once.linear(modulation, width, 6 * width, reads=Reads.CONDITION)
        # Gates, scales and shifts, the former in any case.
        yield once.pointwise(f"{block}.modulated", 6 * width)
        yield token.block_input(block, width)
        yield from _modulated(token, block, modulation, width)
        yield token.linear(f"{attention}.qkv", width, 3 * width, bias=False)
        yield token.table(f"{attention}.q_bias", width)
        yield token.table(f"{attention}.v_bias", width)
        # Queries, keys and values, their norms before and after clamping, unit vectors.
        yield token.pointwise(f"{attention}.unit", 3 * width + 2 * 2 * heads + 2 * width)
        yield token.table(f"{attention}.log_scale", heads)
        # Scaled queries, result, and a sum for each head; the mask as what is added.
        yield token.pointwise(f"{attention}.softmax", 2 * width, floats=heads)
        yield mask.pointwise(f"{attention}.mask", tokens * tokens)
        yield token.attention(attention, width, tokens)
        yield token.linear(f"{attention}.out", width, width, is_input_kept=True)
        yield token.pointwise(modulation, width, reads=Reads.CONDITION)
        yield from _modulated(token, block, modulation, width)
        yield token.linear(f"{block}.feed_forward.wide", width, hidden)
        yield token.pointwise(f"{block}.feed_forward.gelu", hidden)
        yield token.linear(f"{block}.feed_forward.narrow", hidden, width)
        yield token.pointwise(modulation, width, reads=Reads.CONDITION)


def decoder_head(config: VargptConfig) -> Iterator[Operation]:
    """Logits of codes, and their loss in float32."""
    width, tokens = config.visual_decoder_config.width, config.num_image_tokens
    codes = config.image_tokenizer_config.codebook_size
    token, once = Applied(Unit.DRAWN_IMAGE, rows=tokens), Applied(Unit.DRAWN_IMAGE)
    modulation = "visual_decoder.head_modulation"
    yield once.linear(modulation, width, 2 * width, reads=Reads.CONDITION)
    yield from _modulated(token, "visual_decoder", modulation, width)
    yield token.linear("visual_decoder.head", width, codes)
    yield token.pointwise("visual_decoder.loss", 0, floats=codes)


def _modulated(token: Applied, block: str, modulation: str, width: int) -> Iterator[Operation]:
    """Layer norm, scale and shift: keeps input, statistics and scale, and, for a gradient of scales, its
    result.
    """
    once = replace(token, rows=1)
    yield token.pointwise(f"{block}.layer_norm", width, floats=2)
    yield once.pointwise(f"{block}.layer_norm.scale", width)
    yield token.pointwise(modulation, width, reads=Reads.CONDITION)
