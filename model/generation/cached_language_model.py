"""The language model step by step: transformers' weights and mathematics on our store, without its wrappers.

Training passes through transformers' own forward and the kernel that `_attn_implementation` names; a test
holds the two equal. Steps need a kernel that takes masks, since rows of one batch have different lengths.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaDecoderLayer, LlamaRMSNorm

from model.attention import attend_step
from model.backbones import LanguageModel
from model.generation.key_value_cache import CacheStep, KeyValueCache

# Shape legend: R = rows stepped now, T = new positions, P = positions of the context, D = width, N = heads of
# queries and keys together, H = channels of a head.


class CachedLanguageModel:
    """A language model and what it has read so far, in any number of rows."""

    def __init__(self, language_model: LanguageModel) -> None:
        self.language, config = language_model.model, language_model.config
        weight = language_model.get_input_embeddings().weight
        self.context = config.max_position_embeddings
        self.store = KeyValueCache(config, like=weight)
        positions_1P = torch.arange(self.context, device=weight.device)[None]
        cos_1PH, sin_1PH = self.language.rotary_emb(weight, positions_1P)
        self.cos_PH, self.sin_PH = cos_1PH[0], sin_1PH[0].clone()
        # Rotation by halves, (a, b) -> (-b, a), is a roll and a change of sign.
        self.sin_PH[:, : self.sin_PH.shape[1] // 2].neg_()

    @property
    def num_positions(self) -> int:
        """Positions for which every row has room."""
        return self.store.kept_Y2SKNH.shape[3]

    def reserve(self, num_rows: int, num_positions: int) -> None:
        """Room for so many rows and positions at least."""
        self.store.reserve(num_rows, num_positions)

    def copy(self, source: int, targets: Sequence[int], num_positions: int) -> None:
        """Let other rows have read what one row has."""
        self.store.copy(source, targets, num_positions)

    def step(self, embedded_RTD: Tensor, rows: Sequence[int], lengths: Sequence[int]) -> Tensor:
        """Append embedded positions to rows that hold `lengths` so far; their final states, (R, T, D)."""
        place = self.store.step(rows, lengths, embedded_RTD.shape[1])
        rotation = [table_PH[place.positions_RT][:, :, None] for table_PH in (self.cos_PH, self.sin_PH)]
        hidden_RTD = embedded_RTD
        for index, layer in enumerate(self.language.layers):
            hidden_RTD = self._pass(layer, index, hidden_RTD, place, rotation)
        return _norm(self.language.norm, hidden_RTD)

    def _pass(
        self, layer: LlamaDecoderLayer, index: int, x_RTD: Tensor, place: CacheStep, rotation: list[Tensor]
    ) -> Tensor:
        attended_RTD = _attend(layer.self_attn, index, _norm(layer.input_layernorm, x_RTD), place, rotation)
        x_RTD = x_RTD + attended_RTD
        return x_RTD + layer.mlp(_norm(layer.post_attention_layernorm, x_RTD))


def _attend(
    attention: LlamaAttention, index: int, x_RTD: Tensor, place: CacheStep, rotation: list[Tensor]
) -> Tensor:
    """Self-attention of one layer, over all that the rows have read."""
    cos_RT1H, sin_RT1H = rotation
    width = attention.head_dim
    value_RTNH = attention.v_proj(x_RTD).unflatten(2, (-1, width))
    both = torch.cat([attention.q_proj(x_RTD), attention.k_proj(x_RTD)], dim=2)
    both_RTNH = both.unflatten(2, (-1, width))
    both_RTNH = both_RTNH * cos_RT1H + both_RTNH.roll(width // 2, dims=-1) * sin_RT1H
    num_kept = value_RTNH.shape[2]
    keys_RKNH, values_RKNH = place.keep(index, both_RTNH[:, :, -num_kept:], value_RTNH)
    attended_RTNH = attend_step(
        both_RTNH[:, :, :-num_kept], keys_RKNH, values_RKNH, place.mask_R1TK, place.is_causal
    )
    return attention.o_proj(attended_RTNH.flatten(2))


def _norm(norm: LlamaRMSNorm, x_RTD: Tensor) -> Tensor:
    return F.rms_norm(x_RTD, norm.weight.shape, norm.weight, norm.variance_epsilon)
