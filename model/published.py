"""Published checkpoints: the one place that knows their key names. Nothing pickled is trusted.

Source: spec section 3. Dropped on the way: masks and zero buffers (computed here), usage statistics of the
codebook, and the layer norms `ln_q` that the released code never applies.
"""

import re
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from model.errors import UserError

# Each rule rewrites one published name; {n} stands for a number. Longer paths come first.
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
_PROJECTOR_RULES = ((r"^mlp\.0\.", "first."), (r"^mlp\.2\.", "second."), (r"^linear_(1|2)\.", r"linear_\1."))
_UNDERSTANDING_RULES = ((r"^linear_1\.", "first."), (r"^linear_2\.", "second."))
_DROPPED = re.compile(
    r"(^|\.)(lvl_1L|attn_bias_for_masking|zero_k_bias|ema_vocab_hit_SV|ln_q\.\w+|position_ids)$"
)
_PARTS = (
    ("vae_local.", "image_tokenizer."),
    ("vargpt_gen.", "visual_decoder."),
    ("image_gen_projector_out.", "generation_output_projector."),
    ("image_gen_projector.", "generation_input_projector."),
    ("multi_modal_projector.", "understanding_projector."),
    ("vision_tower.vision_model.", "vision_tower.clip."),
    ("language_model.", "language_model."),
)


def tokenizer_weights(published: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of `vae_ch160v4096z32` -> names of ImageTokenizer."""
    renamed = _rename(published, _TOKENIZER_RULES)
    # Published levels of the decoder count from the finest, ours run from the coarsest.
    levels = {int(match[1]) for name in renamed if (match := re.match(r"decoder\.levels\.(\d+)\.", name))}
    return {_flip_level(name, max(levels, default=0)): tensor for name, tensor in renamed.items()}


def _flip_level(name: str, last: int) -> str:
    return re.sub(r"^(decoder\.levels\.)(\d+)", lambda match: f"{match[1]}{last - int(match[2])}", name)


def decoder_weights(published: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of `var_d16` ... `var_d30` -> names of VisualDecoder."""
    renamed = _rename(published, _DECODER_RULES)
    return {
        name: tensor.flatten() if name.endswith("log_scale") else tensor for name, tensor in renamed.items()
    }


def vargpt_weights(published: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of VARGPT v1 (LLaVA) -> names of Vargpt. ValueError for a name that belongs to no part."""
    converters = {
        "image_tokenizer.": tokenizer_weights,
        "visual_decoder.": decoder_weights,
        "generation_output_projector.": lambda part: _rename(part, _PROJECTOR_RULES),
        "generation_input_projector.": lambda part: _rename(part, _PROJECTOR_RULES),
        "understanding_projector.": lambda part: _rename(part, _UNDERSTANDING_RULES),
    }
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in published.items():
        ours, rest = _part_of(name)
        parts.setdefault(ours, {})[rest] = tensor
    return {
        ours + name: tensor
        for ours, part in parts.items()
        for name, tensor in converters.get(ours, _kept)(part).items()
    }


def _part_of(name: str) -> tuple[str, str]:
    for theirs, ours in _PARTS:
        if name.startswith(theirs):
            return ours, name.removeprefix(theirs)
    raise UserError(
        f"{name} belongs to no part of VARGPT v1; known parts: {[theirs for theirs, _ in _PARTS]}"
    )


def _kept(published: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in published.items() if not _DROPPED.search(name)}


def _rename(published: dict[str, Tensor], rules: tuple[tuple[str, str], ...]) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in _kept(published).items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed


def load_published(module: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """Copy converted weights into a module. ValueError names what is missing, unknown or of another shape."""
    own = module.state_dict()
    if unknown := sorted(weights.keys() - own.keys()):
        raise UserError(f"{source} has weights this architecture lacks: {unknown[:5]}")
    if missing := sorted(own.keys() - weights.keys()):
        raise UserError(f"{source} lacks weights of this architecture: {missing[:5]}")
    for name, tensor in weights.items():
        if tensor.shape != own[name].shape:
            raise UserError(f"{source}: {name} is {tuple(tensor.shape)}, expected {tuple(own[name].shape)}")
    module.load_state_dict(weights)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, of a folder of them, or of a published `.pth` (no code is run)."""
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
