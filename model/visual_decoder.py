"""The visual decoder: a transformer that predicts all codes of the next scale at once.

Source: VAR, arXiv:2404.02905 and its released models/var.py. Standing alone it draws by class; inside VARGPT
the language model and two projectors stand between `embed` and `predict`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ImageTokenizerConfig, VisualDecoderConfig
from model.layers import AdaptiveBlock, KeysValues, Modulation, modulate
from model.scales import block_causal_mask, num_tokens, scale_of_token

# Shape legend: B = batch, L = tokens of all scales, M = L - 1, N = tokens fed now, C = width, Z = latent
# channels, V = codebook size.

ADALN_INIT_GAIN = 0.5
ADALN_GATE_GAIN = 1e-5
HEAD_INIT_GAIN = 0.02


class DecoderCache:
    """What each block keeps from scale to scale while an image is drawn: its modulation, its keys and values.

    All scales of an image must be predicted with the same condition.
    """

    def __init__(self, depth: int) -> None:
        self.modulations: list[Modulation | None] = [None] * depth
        self.keys_values: list[KeysValues | None] = [None] * depth


class VisualDecoder(nn.Module):
    """Embedded image tokens and a condition in, logits over the codebook out."""

    def __init__(self, config: VisualDecoderConfig, tokenizer: ImageTokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.scales = tokenizer.scales
        self.start_embedding = nn.Embedding(config.num_starts, config.width)
        self.start_position = nn.Parameter(torch.zeros(1, 1, config.width))
        self.position = nn.Parameter(torch.zeros(1, num_tokens(self.scales), config.width))
        self.scale_embedding = nn.Embedding(len(self.scales), config.width)
        self.word_embedding = nn.Linear(tokenizer.latent_dim, config.width)
        step = config.drop_path / max(config.depth - 1, 1)
        self.blocks = nn.ModuleList(AdaptiveBlock(config, step * index) for index in range(config.depth))
        self.head_modulation = nn.Linear(config.width, 2 * config.width)
        self.head = nn.Linear(config.width, tokenizer.codebook_size)

    def embed_start(self, cond_BC: Tensor) -> Tensor:
        """The first token, that of the coarsest scale: the condition with its position, (B, 1, C)."""
        return cond_BC[:, None] + self.start_position + self._position(0, 1).to(cond_BC.dtype)

    def embed_scales(self, decoder_input_BNZ: Tensor, first: int) -> Tensor:
        """Tokens of further scales, (B, N, C), of which the first is number `first` of all tokens.

        The input of a scale is the canvas so far, area-averaged to its side (`decoder_input` of the
        quantizer).
        """
        words_BNC = self.word_embedding(decoder_input_BNZ.to(self.word_embedding.weight.dtype))
        return words_BNC + self._position(first, decoder_input_BNZ.shape[1])

    def embed(self, cond_BC: Tensor, decoder_input_BMZ: Tensor) -> Tensor:
        """Tokens of all scales, for teacher forcing, (B, L, C)."""
        return torch.cat([self.embed_start(cond_BC), self.embed_scales(decoder_input_BMZ, first=1)], dim=1)

    def _position(self, first: int, count: int) -> Tensor:
        """Embeddings of position and scale of `count` tokens, (1, N, C)."""
        scale_L = scale_of_token(self.scales, self.position.device)[first : first + count]
        return self.position[:, first : first + count] + self.scale_embedding(scale_L)

    def predict(self, x_BNC: Tensor, cond_BC: Tensor, cache: DecoderCache | None = None) -> Tensor:
        """Logits (B, N, V): of all scales under the block-causal mask, or of the next scale given a cache."""
        mask_LL = block_causal_mask(self.scales, x_BNC.device) if cache is None else None
        for index, block in enumerate(self.blocks):
            if cache is None:
                x_BNC, _ = block(x_BNC, block.modulation_of(cond_BC), mask_LL, None)
                continue
            modulation = cache.modulations[index] = cache.modulations[index] or block.modulation_of(cond_BC)
            x_BNC, cache.keys_values[index] = block(x_BNC, modulation, None, cache.keys_values[index])
        scale_B1C, shift_B1C = self.head_modulation(F.silu(cond_BC)).unflatten(1, (1, 2, -1)).unbind(2)
        return self.head(modulate(x_BNC, scale_B1C, shift_B1C))

    def forward(self, cond_BC: Tensor, decoder_input_BMZ: Tensor) -> Tensor:
        """Teacher-forced logits of the class-conditional decoder, (B, L, V)."""
        return self.predict(self.embed(cond_BC, decoder_input_BMZ), cond_BC)

    @torch.no_grad()
    def initialize(self) -> None:
        """Set VAR's initial values for training from nothing: small gates, nearly uniform logits."""
        width = self.config.width
        std = (1 / width / 3) ** 0.5
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=std, a=-2, b=2)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for parameter in (self.start_position, self.position):
            nn.init.trunc_normal_(parameter, std=std, a=-2, b=2)
        self.head.weight.mul_(HEAD_INIT_GAIN)
        self.head_modulation.weight.mul_(ADALN_INIT_GAIN)
        for block in self.blocks:
            block.modulation.weight[2 * width :].mul_(ADALN_INIT_GAIN)
            block.modulation.weight[: 2 * width].mul_(ADALN_GATE_GAIN)
            for branch in (block.attention.out, block.feed_forward.narrow):
                branch.weight.div_((2 * self.config.depth) ** 0.5)
