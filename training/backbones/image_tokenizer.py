"""Trains the image tokenizer of a tiny model, from random weights, on the scenes.

Losses: L1 and L2 of pixels, L1 of edges, and the quantizer's (arXiv:2404.02905). The codebook is an
exponential moving average (arXiv:1711.00937, appendix A) with random restarts of dead entries
(arXiv:2005.00341): of 1024 entries 1021 were in use.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.autoencoder import PixelAttention, ResidualBlock
from model.image_tokenizer import ImageTokenizer
from training.backbones.fit import FitSettings, fit
from training.digits.scene_pool import ScenePool, batch_indices
from training.params import TokenizerParams
from training.precision import BFLOAT16

# Shape legend: B = batch, H W = height and width, P = latent vectors, V = codebook size, Z = latent channels.

SQUARED_WEIGHT, EDGE_WEIGHT = 2.0, 10.0
# Entries are revived in this first share of the steps only.
REVIVE_SHARE = 0.7
# An entry is dead below this share of the mean cluster size.
DEAD_SHARE = 0.15
# Images whose latent vectors the codebook starts from.
CODEBOOK_START_IMAGES = 256


def edge_loss(reconstruction_B3HW: Tensor, pixels_B3HW: Tensor) -> Tensor:
    """Mean absolute error of the differences between neighbouring pixels, vertical plus horizontal.

    It keeps flat strokes flat and edges in place: without it colours vary within a stroke.
    """
    error_B3HW = reconstruction_B3HW - pixels_B3HW
    return error_B3HW.diff(dim=2).abs().mean() + error_B3HW.diff(dim=3).abs().mean()


class CodebookEma:
    """Codebook update by exponential moving averages: an entry is the mean of the vectors quantized to it.

    Args:
        tokenizer: Its codebook is changed in place, without gradients.
        decay: Of the averages, per step.
    """

    def __init__(self, tokenizer: ImageTokenizer, decay: float) -> None:
        self.codebook_VZ = tokenizer.quantizer.codebook.weight.requires_grad_(False)
        self.decay = decay
        self.cluster_sizes_V = torch.ones_like(self.codebook_VZ[:, 0])
        self.cluster_sums_VZ = self.codebook_VZ.clone()

    @torch.no_grad()
    def initialize_from(self, vectors_PZ: Tensor) -> None:
        """Set all entries to random vectors of real images."""
        chosen_V = torch.randint(len(vectors_PZ), (len(self.codebook_VZ),))
        self.codebook_VZ.copy_(vectors_PZ[chosen_V])
        self.cluster_sums_VZ.copy_(self.codebook_VZ)

    @torch.no_grad()
    def update(self, codes: list[Tensor], vectors: list[Tensor]) -> Tensor:
        """Add one batch: codes and the vectors that they quantize, by scale. Returns all vectors, (P, Z)."""
        codes_P, vectors_PZ = torch.cat([c.flatten() for c in codes]), torch.cat(vectors).float()
        counts_V = torch.bincount(codes_P, minlength=len(self.codebook_VZ)).float()
        self.cluster_sizes_V.lerp_(counts_V, 1 - self.decay)
        sums_VZ = torch.zeros_like(self.cluster_sums_VZ).index_add_(0, codes_P, vectors_PZ)
        self.cluster_sums_VZ.lerp_(sums_VZ, 1 - self.decay)
        self.codebook_VZ.copy_(self.cluster_sums_VZ / self.cluster_sizes_V.clamp(min=1e-5)[:, None])
        return vectors_PZ

    @torch.no_grad()
    def revive(self, vectors_PZ: Tensor) -> int:
        """Dead code revival: set entries that are hardly used to random vectors of a batch; their number."""
        mean_size = self.cluster_sizes_V.mean()
        is_dead_V = self.cluster_sizes_V < DEAD_SHARE * mean_size
        count = int(is_dead_V.sum())
        self.codebook_VZ[is_dead_V] = vectors_PZ[torch.randint(len(vectors_PZ), (count,))]
        self.cluster_sizes_V[is_dead_V] = mean_size
        self.cluster_sums_VZ[is_dead_V] = self.codebook_VZ[is_dead_V] * mean_size
        return count

    def buffers(self) -> tuple[Tensor, ...]:
        """All tensors that change, for checkpoints."""
        return self.codebook_VZ, self.cluster_sizes_V, self.cluster_sums_VZ


@torch.no_grad()
def initialize_weights(tokenizer: ImageTokenizer) -> None:
    """Kaiming initialization of all convolutions, and residual branches that begin at zero.

    PyTorch's default shrinks the signal; with these weights the error after 80 steps is half as large.
    """
    for module in (*tokenizer.encoder.modules(), *tokenizer.decoder.modules()):
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)
    for module in (*tokenizer.encoder.modules(), *tokenizer.decoder.modules()):
        if isinstance(module, ResidualBlock | PixelAttention):
            last = module.conv2 if isinstance(module, ResidualBlock) else module.out
            nn.init.zeros_(last.weight)


def train_tokenizer(
    tokenizer: ImageTokenizer, pool: ScenePool, params: TokenizerParams, settings: FitSettings
) -> None:
    """Train the tokenizer in place, on scenes of the pool. Raises what `fit` raises."""
    torch.manual_seed(settings.seed)
    initialize_weights(tokenizer)
    codebook = CodebookEma(tokenizer, params.codebook_decay)
    # Convolutions in float32 are faster with channels last; in bfloat16 they are slower.
    layout = torch.contiguous_format if settings.precision == BFLOAT16 else torch.channels_last
    tokenizer.to(memory_format=layout).train()
    with torch.no_grad():
        latents = tokenizer.latent(pool.pixels_at(torch.arange(min(CODEBOOK_START_IMAGES, len(pool)))))
        codebook.initialize_from(latents.flatten(2).mT.flatten(0, 1))

    def compute_losses(step: int) -> dict[str, Tensor]:
        pixels_B3HW = pool.pixels_at(batch_indices(step, params.batch, len(pool), settings.seed))
        output = tokenizer(pixels_B3HW)
        vectors_PZ = codebook.update(output.quantized.codes, output.quantized.vectors)
        if step % params.revive_every == params.revive_every - 1 and step < REVIVE_SHARE * params.steps:
            codebook.revive(vectors_PZ)
        return {
            "absolute": F.l1_loss(output.pixels.float(), pixels_B3HW),
            "squared": SQUARED_WEIGHT * F.mse_loss(output.pixels.float(), pixels_B3HW),
            "edges": EDGE_WEIGHT * edge_loss(output.pixels.float(), pixels_B3HW),
            "quantizer": output.quantized.loss.float(),
        }

    fit([tokenizer], params, settings, compute_losses, codebook.buffers())
    tokenizer.to(memory_format=torch.contiguous_format).requires_grad_(False).eval()
