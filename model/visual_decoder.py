"""The visual decoder: a transformer that predicts all codes of the next scale at once.

Source: arXiv:2404.02905 (VAR); spec sections 1.1 to 1.3. Standing alone it draws by class; inside VARGPT the
language model and two projectors sit between `embed` and `predict`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ImageTokenizerConfig, VisualDecoderConfig
from model.layers import AdaptiveBlock, KeysValues, Modulation, modulate
from model.scales import block_causal_mask, num_tokens, scale_of_token, scale_offsets

# Shape legend: B = batch, L = tokens of the pyramid, M = L - 1, N = tokens fed now, C = width, Z = latent
# channels, V = codebook size.

ADALN_INIT_GAIN = 0.5
ADALN_GATE_GAIN = 1e-5
HEAD_INIT_GAIN = 0.02


class DecoderCache:
    """Of each block: what the condition asks, and keys and values of the scales drawn so far.

    Whoever draws with one cache must not change the condition on the way.
    """

    def __init__(self, depth: int) -> None:
        self.asked: list[Modulation | None] = [None] * depth
        self.seen: list[KeysValues | None] = [None] * depth


class VisualDecoder(nn.Module):
    """Pyramid so far and a condition in, logits over the codebook out."""

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
        """The first token of the pyramid: the condition itself with its place, (B, 1, C)."""
        return cond_BC[:, None] + self.start_position + self._place(0, 1).to(cond_BC.dtype)

    def embed_seen(self, seen_BNZ: Tensor, first: int) -> Tensor:
        """What has been drawn so far, area-averaged to the sides of the next scales, with its place,
        (B, N, C).
        """
        words_BNC = self.word_embedding(seen_BNZ.to(self.word_embedding.weight.dtype))
        return words_BNC + self._place(first, seen_BNZ.shape[1])

    def embed(self, cond_BC: Tensor, seen_BMZ: Tensor) -> Tensor:
        """The whole pyramid as it is fed in training, (B, L, C)."""
        return torch.cat([self.embed_start(cond_BC), self.embed_seen(seen_BMZ, first=1)], dim=1)

    def _place(self, first: int, count: int) -> Tensor:
        scale_L = scale_of_token(self.scales, self.position.device)[first : first + count]
        return self.position[:, first : first + count] + self.scale_embedding(scale_L)

    def predict(self, x_BNC: Tensor, cond_BC: Tensor, cache: DecoderCache | None = None) -> Tensor:
        """Logits (B, N, V): of the whole pyramid under the block mask, or of one scale on top of a cache."""
        mask_LL = block_causal_mask(self.scales, x_BNC.device) if cache is None else None
        for index, block in enumerate(self.blocks):
            if cache is None:
                x_BNC, _ = block(x_BNC, block.asked(cond_BC), mask_LL, None)
                continue
            asked = cache.asked[index] = cache.asked[index] or block.asked(cond_BC)
            x_BNC, cache.seen[index] = block(x_BNC, asked, None, cache.seen[index])
        scale_B1C, shift_B1C = self.head_modulation(F.silu(cond_BC)).unflatten(1, (1, 2, -1)).unbind(2)
        return self.head(modulate(x_BNC, scale_B1C, shift_B1C))

    def forward(self, cond_BC: Tensor, seen_BMZ: Tensor) -> Tensor:
        """Teacher-forced logits of the class-conditional decoder, (B, L, V)."""
        return self.predict(self.embed(cond_BC, seen_BMZ), cond_BC)

    def scale_slice(self, k: int) -> slice:
        """Where scale k lies in the flat pyramid."""
        offsets = scale_offsets(self.scales)
        return slice(offsets[k], offsets[k + 1])

    @torch.no_grad()
    def initialize(self) -> None:
        """Start values of a decoder trained from nothing, VAR's: branches nearly closed, head nearly flat."""
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
