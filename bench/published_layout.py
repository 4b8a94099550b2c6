"""Keys and shapes of published checkpoints for any configuration, to write files like theirs without having
them.

Layouts: VARGPT v1 and LLaVA-1.5 as transformers 4.46 wrote them, VAR and its image tokenizer as released with
arXiv:2404.02905. At the sizes of tests/golden they are the keys of the published code
(tests/training/backbones/test_import_weights.py).
"""

from collections.abc import Iterator
from itertools import pairwise

from transformers import CLIPVisionConfig, LlamaConfig

from model.config import ImageTokenizerConfig, VargptConfig
from model.scales import num_tokens

Shape = tuple[int, ...]
Entries = Iterator[tuple[str, Shape]]

# Names of tensors that are whole numbers.
INTEGERS = ("lvl_1L",)
CLASSES = 1000


def released_vargpt(config: VargptConfig) -> dict[str, Shape]:
    """The whole model in one folder."""
    width, hidden = config.visual_decoder_config.width, config.hidden_size
    starts = config.visual_decoder_config.num_starts
    parts = {
        "vae_local.": image_tokenizer(config.image_tokenizer_config),
        "vargpt_gen.": var(config, starts - 1),
        "image_gen_projector.": dict(_generation_projector(width, width, hidden)),
        "image_gen_projector_out.": dict(_generation_projector(hidden, hidden, width)),
    }
    return llava(config) | {
        prefix + key: shape for prefix, part in parts.items() for key, shape in part.items()
    }


def llava(config: VargptConfig) -> dict[str, Shape]:
    """LLaVA-1.5: vision tower, understanding projector, language model."""
    vision, hidden = config.vision_config, config.hidden_size
    projector = [
        *_linear("linear_1", hidden, vision.hidden_size),
        *_linear("linear_2", hidden, hidden),
    ]
    return {
        **{f"vision_tower.vision_model.{key}": shape for key, shape in _clip(vision)},
        **{f"multi_modal_projector.{key}": shape for key, shape in projector},
        **{f"language_model.{key}": shape for key, shape in _llama(config.text_config)},
    }


def var(config: VargptConfig, classes: int = CLASSES) -> dict[str, Shape]:
    """A class-conditional VAR."""
    decoder, tokenizer = config.visual_decoder_config, config.image_tokenizer_config
    width, tokens = decoder.width, num_tokens(tokenizer.scales)
    entries = {
        "pos_start": (1, 1, width),
        "pos_1LC": (1, tokens, width),
        "lvl_1L": (1, tokens),
        "attn_bias_for_masking": (1, 1, tokens, tokens),
        "class_emb.weight": (classes + 1, width),
        "lvl_embed.weight": (len(tokenizer.scales), width),
    }
    entries |= _linear("word_embed", width, tokenizer.latent_dim)
    entries |= _linear("head_nm.ada_lin.1", 2 * width, width)
    entries |= _linear("head", tokenizer.codebook_size, width)
    for index in range(decoder.depth):
        block = {
            "attn.scale_mul_1H11": (1, decoder.num_heads, 1, 1),
            "attn.q_bias": (width,),
            "attn.v_bias": (width,),
            "attn.zero_k_bias": (width,),
            "attn.mat_qkv.weight": (3 * width, width),
        }
        block |= _linear("attn.proj", width, width)
        block |= _linear("ffn.fc1", decoder.mlp_ratio * width, width)
        block |= _linear("ffn.fc2", width, decoder.mlp_ratio * width)
        block |= _linear("ada_lin.1", 6 * width, width)
        entries |= {f"blocks.{index}.{key}": shape for key, shape in block.items()}
    return entries


def image_tokenizer(config: ImageTokenizerConfig) -> dict[str, Shape]:
    """VAR's multi-scale VQ-VAE."""
    latent, last = config.latent_dim, len(config.channels) - 1
    deepest = config.channels[-1]
    entries: dict[str, Shape] = {
        "quantize.ema_vocab_hit_SV": (len(config.scales), config.codebook_size),
        "quantize.embedding.weight": (config.codebook_size, latent),
    }
    for index in range(config.num_refiners):
        entries |= _conv(f"quantize.quant_resi.qresi_ls.{index}", latent, latent, 3)
    for name in ("quant_conv", "post_quant_conv"):
        entries |= _conv(name, latent, latent, 3)
    entries |= _conv("encoder.conv_in", config.channels[0], 3, 3)
    entries |= _conv("encoder.conv_out", latent, deepest, 3)
    entries |= _conv("decoder.conv_in", deepest, latent, 3)
    entries |= _conv("decoder.conv_out", 3, config.channels[0], 3)
    for side, width in (("encoder", deepest), ("decoder", config.channels[0])):
        entries |= _norm(f"{side}.norm_out", width)
        entries |= _block(f"{side}.mid.block_1", deepest, deepest)
        entries |= _attention(f"{side}.mid.attn_1", deepest)
        entries |= _block(f"{side}.mid.block_2", deepest, deepest)
    inputs = (config.channels[0], *config.channels)
    for level, widths in enumerate(pairwise(inputs)):
        entries |= _level(f"encoder.down.{level}", *widths, config.encoder_blocks, level == last)
        if level < last:
            entries |= _conv(f"encoder.down.{level}.downsample.conv", widths[1], widths[1], 3)
    inputs = (*config.channels, deepest)
    for level in range(last + 1):
        widths = inputs[level + 1], inputs[level]
        entries |= _level(f"decoder.up.{level}", *widths, config.decoder_blocks, level == last)
        if level > 0:
            entries |= _conv(f"decoder.up.{level}.upsample.conv", widths[1], widths[1], 3)
    return entries


def _level(name: str, inputs: int, outputs: int, num_blocks: int, has_attention: bool) -> dict[str, Shape]:
    entries: dict[str, Shape] = {}
    for index, widths in enumerate(pairwise([inputs] + [outputs] * num_blocks)):
        entries |= _block(f"{name}.block.{index}", *widths)
        if has_attention:
            entries |= _attention(f"{name}.attn.{index}", outputs)
    return entries


def _block(name: str, inputs: int, outputs: int) -> dict[str, Shape]:
    entries = dict(_norm(f"{name}.norm1", inputs)) | dict(_norm(f"{name}.norm2", outputs))
    entries |= _conv(f"{name}.conv1", outputs, inputs, 3)
    entries |= _conv(f"{name}.conv2", outputs, outputs, 3)
    return entries if inputs == outputs else entries | dict(_conv(f"{name}.nin_shortcut", outputs, inputs, 1))


def _attention(name: str, width: int) -> dict[str, Shape]:
    entries = dict(_norm(f"{name}.norm", width))
    return (
        entries
        | dict(_conv(f"{name}.qkv", 3 * width, width, 1))
        | dict(_conv(f"{name}.proj_out", width, width, 1))
    )


def _generation_projector(inputs: int, hidden: int, outputs: int) -> Entries:
    yield from _norm("ln_q", inputs)
    yield from _linear("mlp.0", hidden, inputs)
    yield from _linear("mlp.2", outputs, hidden)


def _clip(config: CLIPVisionConfig) -> Entries:
    width, patches = config.hidden_size, (config.image_size // config.patch_size) ** 2
    yield "embeddings.class_embedding", (width,)
    yield "embeddings.patch_embedding.weight", (width, 3, config.patch_size, config.patch_size)
    yield "embeddings.position_embedding.weight", (patches + 1, width)
    for name in ("pre_layrnorm", "post_layernorm"):
        yield from _norm(name, width)
    for index in range(config.num_hidden_layers):
        layer = f"encoder.layers.{index}"
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            yield from _linear(f"{layer}.self_attn.{name}", width, width)
        yield from _norm(f"{layer}.layer_norm1", width)
        yield from _norm(f"{layer}.layer_norm2", width)
        yield from _linear(f"{layer}.mlp.fc1", config.intermediate_size, width)
        yield from _linear(f"{layer}.mlp.fc2", width, config.intermediate_size)


def _llama(config: LlamaConfig) -> Entries:
    width, inner = config.hidden_size, config.intermediate_size
    keys = config.num_key_value_heads * width // config.num_attention_heads
    yield "model.embed_tokens.weight", (config.vocab_size, width)
    for index in range(config.num_hidden_layers):
        layer = f"model.layers.{index}"
        for name, rows in (("q_proj", width), ("k_proj", keys), ("v_proj", keys), ("o_proj", width)):
            yield f"{layer}.self_attn.{name}.weight", (rows, width)
        for name in ("gate_proj", "up_proj"):
            yield f"{layer}.mlp.{name}.weight", (inner, width)
        yield f"{layer}.mlp.down_proj.weight", (width, inner)
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{layer}.{name}.weight", (width,)
    yield "model.norm.weight", (width,)
    yield "lm_head.weight", (config.vocab_size, width)


def _linear(name: str, outputs: int, inputs: int) -> Entries:
    yield f"{name}.weight", (outputs, inputs)
    yield f"{name}.bias", (outputs,)


def _conv(name: str, outputs: int, inputs: int, side: int) -> Entries:
    yield f"{name}.weight", (outputs, inputs, side, side)
    yield f"{name}.bias", (outputs,)


def _norm(name: str, width: int) -> Entries:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)
