"""The language model fed step by step, on the key-value cache of this package.

It computes what transformers' LLaMA computes, from the same weights, without the overhead of its wrappers; a
test holds the two equal. Training uses transformers' own forward pass.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaDecoderLayer, LlamaRMSNorm

from model.attention import attend_cached
from model.backbones import LanguageModel
from model.generation.key_value_cache import CacheStep, KeyValueCache

# Shape legend: R = rows of this step, T = new positions, P = positions of the context, K = positions of the
# cache, D = width, N = heads, H = channels of a head.


class CachedLanguageModel:
    """A language model and what it has read so far, in any number of rows."""

    def __init__(self, language_model: LanguageModel) -> None:
        self.llama, config = language_model.model, language_model.config
        weight = language_model.get_input_embeddings().weight
        self.context = config.max_position_embeddings
        self.cache = KeyValueCache(config, like=weight)
        positions_1P = torch.arange(self.context, device=weight.device)[None]
        cos_1PH, sin_1PH = self.llama.rotary_emb(weight, positions_1P)
        self.cos_PH, self.sin_PH = cos_1PH[0], sin_1PH[0].clone()
        # Rotary embedding turns halves (a, b) into (-b, a): a roll, with the sign in the sine table.
        self.sin_PH[:, : self.sin_PH.shape[1] // 2].neg_()

    @property
    def num_positions(self) -> int:
        """Positions for which every row has room."""
        return self.cache.keys_values_Y2SKNH.shape[3]

    def reserve(self, num_rows: int, num_positions: int) -> None:
        """Grow the cache to at least so many rows and positions."""
        self.cache.reserve(num_rows, num_positions)

    def copy(self, source: int, targets: Sequence[int], num_positions: int) -> None:
        """Let other rows continue from the first positions of one row."""
        self.cache.copy(source, targets, num_positions)

    def step(self, embedded_RTD: Tensor, rows: Sequence[int], lengths: Sequence[int]) -> Tensor:
        """Append embeddings to rows that hold `lengths` positions so far; their last hidden states,
        (R, T, D).
        """
        step = self.cache.step(rows, lengths, embedded_RTD.shape[1])
        rotation = [table_PH[step.positions_RT][:, :, None] for table_PH in (self.cos_PH, self.sin_PH)]
        hidden_RTD = embedded_RTD
        for index, layer in enumerate(self.llama.layers):
            hidden_RTD = _decoder_layer(layer, index, hidden_RTD, step, rotation)
        return _norm(self.llama.norm, hidden_RTD)


def _decoder_layer(
    layer: LlamaDecoderLayer, index: int, x_RTD: Tensor, step: CacheStep, rotation: list[Tensor]
) -> Tensor:
    attended_RTD = _attention(layer.self_attn, index, _norm(layer.input_layernorm, x_RTD), step, rotation)
    x_RTD = x_RTD + attended_RTD
    return x_RTD + layer.mlp(_norm(layer.post_attention_layernorm, x_RTD))


def _attention(
    attention: LlamaAttention, index: int, x_RTD: Tensor, step: CacheStep, rotation: list[Tensor]
) -> Tensor:
    """Self-attention of layer `index` to the rows' cached positions and the new ones."""
    cos_RT1H, sin_RT1H = rotation
    width = attention.head_dim
    values_RTNH = attention.v_proj(x_RTD).unflatten(2, (-1, width))
    num_key_heads = values_RTNH.shape[2]
    # Queries and keys are rotated together.
    both_RTNH = torch.cat([attention.q_proj(x_RTD), attention.k_proj(x_RTD)], dim=2).unflatten(2, (-1, width))
    both_RTNH = both_RTNH * cos_RT1H + both_RTNH.roll(width // 2, dims=-1) * sin_RT1H
    queries_RTNH, new_keys_RTNH = both_RTNH[:, :, :-num_key_heads], both_RTNH[:, :, -num_key_heads:]
    keys_RKNH, values_RKNH = step.update(index, new_keys_RTNH, values_RTNH)
    attended_RTNH = attend_cached(queries_RTNH, keys_RKNH, values_RKNH, step.mask_R1TK, step.is_causal)
    return attention.o_proj(attended_RTNH.flatten(2))


def _norm(norm: LlamaRMSNorm, x_RTD: Tensor) -> Tensor:
    return F.rms_norm(x_RTD, norm.weight.shape, norm.weight, norm.variance_epsilon)
