"""Names of published weights, which appear nowhere else, and what they are called here.

Published are VAR (`var_d16` to `var_d36`), its image tokenizer (`vae_ch160v4096z32`), LLaVA-1.5 and VARGPT
v1. Left out are masks, indices and zero biases, which are computed here, usage statistics of the codebook,
and the layer norms `ln_q`, which the released code never applies.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from model.errors import UserError

# Rules are applied one after the other to each name, so longer paths come first.
Rules = tuple[tuple[str, str], ...]
_TOKENIZER_RULES: Rules = (
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
_DECODER_RULES: Rules = (
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
_GENERATION_RULES: Rules = ((r"^mlp\.0\.", "first."), (r"^mlp\.2\.", "second."))
_UNDERSTANDING_RULES: Rules = ((r"^linear_1\.", "first."), (r"^linear_2\.", "second."))
# Published prefix of each part, our prefix, and the rules within the part.
_PARTS: tuple[tuple[str, str, Rules], ...] = (
    ("vae_local.", "image_tokenizer.", _TOKENIZER_RULES),
    ("vargpt_gen.", "visual_decoder.", _DECODER_RULES),
    ("image_gen_projector_out.", "generation_output_projector.", _GENERATION_RULES),
    ("image_gen_projector.", "generation_input_projector.", _GENERATION_RULES),
    ("multi_modal_projector.", "understanding_projector.", _UNDERSTANDING_RULES),
    ("vision_tower.", "vision_tower.clip.", ()),
    ("language_model.", "language_model.", ()),
)
# LLaVA's prefixes since transformers 4.52 and, of the vision tower, before 5.0 -> those of transformers 5.
_OTHER_PREFIXES: Rules = (
    (r"^model\.(vision_tower|multi_modal_projector)\.", r"\1."),
    (r"^model\.language_model\.", "language_model.model."),
    (r"^lm_head\.", "language_model.lm_head."),
    (r"^vision_tower\.vision_model\.", "vision_tower."),
)
_COMPUTED = "a mask or an index, which is computed"
_UNUSED = (
    (r"(lvl_1L|attn_bias_for_masking|position_ids|inv_freq)", _COMPUTED),
    (r"zero_k_bias", "always zero: keys have no bias"),
    (r"ema_vocab_hit_SV", "usage statistics of the codebook"),
    (r"ln_q\.\w+", "a layer norm that the published code never applies"),
)


@dataclass(frozen=True)
class Renaming:
    """What becomes of published names: `ours` has our names, `unused` the reasons why others are left out."""

    ours: dict[str, str] = field(default_factory=dict)
    unused: dict[str, str] = field(default_factory=dict)


class UnknownNameError(UserError):
    """A published name that is unknown here, or of a weight that has another name already."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name} {reason}")
        self.name = name


# Published names -> what becomes of them.
RenameAll = Callable[[Iterable[str]], Renaming]


def tokenizer_names(published: Iterable[str]) -> Renaming:
    """Names of `vae_ch160v4096z32`, within ImageTokenizer."""
    renaming = _rename(published, _TOKENIZER_RULES)
    # The published decoder numbers its levels from the highest resolution, ours from the lowest.
    names = renaming.ours.values()
    levels = {int(match[1]) for name in names if (match := re.match(r"decoder\.levels\.(\d+)\.", name))}
    last = max(levels, default=0)
    flipped = {published: _flip_level(name, last) for published, name in renaming.ours.items()}
    return Renaming(flipped, renaming.unused)


def _flip_level(name: str, last: int) -> str:
    return re.sub(r"^(decoder\.levels\.)(\d+)", lambda match: f"{match[1]}{last - int(match[2])}", name)


def decoder_names(published: Iterable[str]) -> Renaming:
    """Names of `var_d16` ... `var_d30`, within VisualDecoder."""
    return _rename(published, _DECODER_RULES)


def vargpt_names(published: Iterable[str]) -> Renaming:
    """Names of VARGPT v1, and so of LLaVA-1.5, within Vargpt.

    UnknownNameError for a name that belongs to no part, and for two names of one weight.
    """
    # Of each part: names within it -> published names.
    parts: dict[int, dict[str, str]] = {}
    for name in published:
        index, inside = _part_of(name)
        if (other := parts.setdefault(index, {}).setdefault(inside, name)) != name:
            raise UnknownNameError(name, f"is the same weight as {other}")
    whole = Renaming()
    for index, names in parts.items():
        _, prefix, rules = _PARTS[index]
        part = tokenizer_names(names) if rules is _TOKENIZER_RULES else _rename(names, rules)
        whole.ours.update({names[inside]: prefix + ours for inside, ours in part.ours.items()})
        whole.unused.update({names[inside]: reason for inside, reason in part.unused.items()})
    return whole


def is_released_vargpt(published: Iterable[str]) -> bool:
    """Whether these names are of VARGPT v1; LLaVA has neither decoder nor image tokenizer."""
    return any(name.startswith(("vargpt_gen.", "vae_local.")) for name in published)


def _part_of(name: str) -> tuple[int, str]:
    """Index of the part that a published name belongs to, and its name within the part."""
    usual = name
    for pattern, replacement in _OTHER_PREFIXES:
        usual = re.sub(pattern, replacement, usual)
    for index, (prefix, _, _) in enumerate(_PARTS):
        if usual.startswith(prefix):
            return index, usual.removeprefix(prefix)
    known = ", ".join(prefix.removesuffix(".") for prefix, _, _ in _PARTS)
    raise UnknownNameError(name, f"belongs to no part of VARGPT v1; known parts: {known}")


def _rename(published: Iterable[str], rules: Rules) -> Renaming:
    renaming = Renaming()
    for name in published:
        if reason := _reason_unused(name):
            renaming.unused[name] = reason
            continue
        ours = name
        for pattern, replacement in rules:
            ours = re.sub(pattern, replacement, ours)
        renaming.ours[name] = ours
    return renaming


def _reason_unused(name: str) -> str | None:
    for pattern, reason in _UNUSED:
        if re.search(rf"(^|\.){pattern}$", name):
            return reason
    return None


def in_our_shape(name: str, tensor: Tensor) -> Tensor:
    """A published tensor in the shape that it has under our name: softmax scales are a flat vector."""
    return tensor.flatten() if name.endswith("log_scale") else tensor


def renamed(published: Mapping[str, Tensor], names_of: RenameAll) -> dict[str, Tensor]:
    """All published tensors under our names, in our shapes."""
    names = names_of(published).ours
    return {name: in_our_shape(name, published[key]) for key, name in names.items()}
