"""Weights of published checkpoints, renamed from their key names, which appear nowhere else, to ours.

Published are VAR (`var_d16` to `var_d36`), its image tokenizer (`vae_ch160v4096z32`) and VARGPT v1. Left out
are masks and zero biases, which are computed here, usage statistics of the codebook, and the layer norms
`ln_q`, which the released code never applies.
"""

import pickle
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from model.errors import UserError

# Rules are applied one after the other to each name, so longer paths come first.
_TOKENIZER_RULES = (
    (r"(encoder|decoder)\.mid\.block_1\.", r"\1.middle.0."),
    (r"(encoder|decoder)\.mid\.attn_1\.", r"\1.middle.1."),
    (r"(encoder|decoder)\.mid\.block_2\.", r"\1.middle.2."),
    (r"encoder\.down\.(\d+)\.block\.", r"encoder.levels.\1.blocks."),
    (r"encoder\.down\.(\d+)\.attn\.", r"encoder.levels.\1.attentions."),
    (r"encoder\.down\.(\d+)\.downsample\.", r"encoder.levels.\1.resize."),
    (r"decoder\.up\.(\d+)\.block\.", r"decoder.levels.\1.blocks."),
    (r"decoder\.up\.(\d+)\.attn\.", r"decoder.levels.\1.attentions."),
    (r"decoder\.up\.(\d+)\.upsample\.", r"decoder.levels.\1.resize."),
    (r"nin_shortcut\.", "shortcut."),
    (r"proj_out\.", "out."),
    (r"^quantize\.quant_resi\.qresi_ls\.(\d+)\.", r"quantizer.refiners.\1."),
    (r"^quantize\.embedding\.", "quantizer.codebook."),
    (r"^quant_conv\.", "to_latent."),
    (r"^post_quant_conv\.", "from_latent."),
)
_DECODER_RULES = (
    (r"^pos_start$", "start_position"),
    (r"^pos_1LC$", "position"),
    (r"^class_emb\.", "start_embedding."),
    (r"^lvl_embed\.", "scale_embedding."),
    (r"^word_embed\.", "word_embedding."),
    (r"^head_nm\.ada_lin\.1\.", "head_modulation."),
    (r"ada_lin\.1\.", "modulation."),
    (r"\.attn\.scale_mul_1H11$", ".attention.log_scale"),
    (r"\.attn\.mat_qkv\.", ".attention.qkv."),
    (r"\.attn\.proj\.", ".attention.out."),
    (r"\.attn\.", ".attention."),
    (r"\.ffn\.fc1\.", ".feed_forward.wide."),
    (r"\.ffn\.fc2\.", ".feed_forward.narrow."),
)
_GENERATION_RULES = ((r"^mlp\.0\.", "first."), (r"^mlp\.2\.", "second."))
_UNDERSTANDING_RULES = ((r"^linear_1\.", "first."), (r"^linear_2\.", "second."))
_UNUSED = re.compile(
    r"(^|\.)(lvl_1L|attn_bias_for_masking|zero_k_bias|ema_vocab_hit_SV|ln_q\.\w+|position_ids)$"
)
# Published prefix and ours, of each part of VARGPT v1.
_PREFIXES = (
    ("vae_local.", "image_tokenizer."),
    ("vargpt_gen.", "visual_decoder."),
    ("image_gen_projector_out.", "generation_output_projector."),
    ("image_gen_projector.", "generation_input_projector."),
    ("multi_modal_projector.", "understanding_projector."),
    ("vision_tower.vision_model.", "vision_tower.clip."),
    ("language_model.", "language_model."),
)


def tokenizer_weights(published: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of `vae_ch160v4096z32` by the names of ImageTokenizer."""
    renamed = _rename(published, _TOKENIZER_RULES)
    # The published decoder numbers its levels from the highest resolution, ours from the lowest.
    levels = {int(match[1]) for name in renamed if (match := re.match(r"decoder\.levels\.(\d+)\.", name))}
    return {_flip_level(name, max(levels, default=0)): tensor for name, tensor in renamed.items()}


def _flip_level(name: str, last: int) -> str:
    return re.sub(r"^(decoder\.levels\.)(\d+)", lambda match: f"{match[1]}{last - int(match[2])}", name)


def decoder_weights(published: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of `var_d16` ... `var_d30` by the names of VisualDecoder."""
    renamed = _rename(published, _DECODER_RULES)
    return {
        name: tensor.flatten() if name.endswith("log_scale") else tensor for name, tensor in renamed.items()
    }


def vargpt_weights(published: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of VARGPT v1 (LLaVA) by the names of Vargpt. UserError for a name that belongs to no part."""
    converters = {
        "image_tokenizer.": tokenizer_weights,
        "visual_decoder.": decoder_weights,
        "generation_output_projector.": lambda part: _rename(part, _GENERATION_RULES),
        "generation_input_projector.": lambda part: _rename(part, _GENERATION_RULES),
        "understanding_projector.": lambda part: _rename(part, _UNDERSTANDING_RULES),
    }
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in published.items():
        prefix, name_in_part = _part_of(name)
        parts.setdefault(prefix, {})[name_in_part] = tensor
    return {
        prefix + name: tensor
        for prefix, part in parts.items()
        for name, tensor in converters.get(prefix, _without_unused)(part).items()
    }


def _part_of(name: str) -> tuple[str, str]:
    """Our prefix of the part that a published name belongs to, and its name within the part."""
    for published_prefix, prefix in _PREFIXES:
        if name.startswith(published_prefix):
            return prefix, name.removeprefix(published_prefix)
    known = [published_prefix for published_prefix, _ in _PREFIXES]
    raise UserError(f"{name} belongs to no part of VARGPT v1; known parts: {known}")


def _without_unused(published: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in published.items() if not _UNUSED.search(name)}


def _rename(published: dict[str, Tensor], rules: tuple[tuple[str, str], ...]) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in _without_unused(published).items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors by name of a safetensors file, of a folder of such files, or of a published `.pth`.

    No code in a file is run. UserError when there are no weights, or anything else than tensors.
    """
    try:
        weights = _read_weights(path)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, OSError, EOFError, LookupError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(weights, dict):
        raise UserError(f"{path} holds a {type(weights).__name__} instead of tensors by name")
    for name, value in weights.items():
        if not isinstance(value, Tensor):
            raise UserError(f"{path} holds more than tensors: {name!r} is of type {type(value).__name__}")
    return weights


def _read_weights(path: Path) -> dict[str, Tensor]:
    if path.is_dir():
        files = sorted(path.glob("*.safetensors"))
        if not files:
            raise UserError(f"{path} holds no .safetensors files")
        return {name: tensor for file in files for name, tensor in load_file(file).items()}
    if not path.is_file():
        raise UserError(f"no weights at {path}")
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix == ".pth":
        return torch.load(path, map_location="cpu", weights_only=True)
    raise UserError(f"weights must be .safetensors or a published .pth, got {path.name}")
