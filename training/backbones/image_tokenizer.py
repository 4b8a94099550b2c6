"""The image tokenizer of a tiny model, trained from nothing on the scenes.

Source: loss of spec section 2.5 with L1 and L2 reconstruction, and L1 of edges; the codebook follows its
members by a moving average and entries without members are put where there is something to express (measured
in the tiny recipe: 1021 of 1024 codes used).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.autoencoder import PixelAttention, ResidualBlock
from model.image_tokenizer import ImageTokenizer
from training.backbones.fit import FitSettings, fit
from training.digits.scene_pool import ScenePool, batch_indices
from training.params import TokenizerParams

# Shape legend: B = batch, H W = height and width, P = vectors, V = codebook size, Z = latent channels.

SQUARED_WEIGHT, EDGE_WEIGHT = 2.0, 10.0
REVIVE_SHARE = 0.7
# An entry with less than this share of the average number of members is dead.
DEAD_SHARE = 0.15
FIRST_BATCH = 256


def edge_loss(made_B3HW: Tensor, pixels_B3HW: Tensor) -> Tensor:
    """Mean absolute difference of the steps between neighbouring pixels, down and across.

    Flat strokes stay flat and edges where they are: without it colours shimmer within a stroke.
    """
    wrong_B3HW = made_B3HW - pixels_B3HW
    return wrong_B3HW.diff(dim=2).abs().mean() + wrong_B3HW.diff(dim=3).abs().mean()


class CodebookAverage:
    """Moves each codebook entry to the average of the vectors that chose it."""

    def __init__(self, tokenizer: ImageTokenizer, decay: float) -> None:
        self.codebook_VZ = tokenizer.quantizer.codebook.weight.requires_grad_(False)
        self.decay = decay
        self.members_V = torch.ones_like(self.codebook_VZ[:, 0])
        self.sums_VZ = self.codebook_VZ.clone()

    @torch.no_grad()
    def start_from(self, vectors_PZ: Tensor) -> None:
        """Begin with vectors of real pictures instead of noise."""
        chosen_V = torch.randint(len(vectors_PZ), (len(self.codebook_VZ),))
        self.codebook_VZ.copy_(vectors_PZ[chosen_V])
        self.sums_VZ.copy_(self.codebook_VZ)

    @torch.no_grad()
    def update(self, codes: list[Tensor], vectors: list[Tensor]) -> Tensor:
        """Take in what one batch chose; the vectors of the batch, (P, Z)."""
        codes_P, vectors_PZ = torch.cat([c.flatten() for c in codes]), torch.cat(vectors).float()
        counts_V = torch.bincount(codes_P, minlength=len(self.codebook_VZ)).float()
        self.members_V.lerp_(counts_V, 1 - self.decay)
        sums_VZ = torch.zeros_like(self.sums_VZ).index_add_(0, codes_P, vectors_PZ)
        self.sums_VZ.lerp_(sums_VZ, 1 - self.decay)
        self.codebook_VZ.copy_(self.sums_VZ / self.members_V.clamp(min=1e-5)[:, None])
        return vectors_PZ

    @torch.no_grad()
    def revive(self, vectors_PZ: Tensor) -> int:
        """Put entries that nobody chooses at random vectors of the batch; how many."""
        mean_members = self.members_V.mean()
        dead = self.members_V < DEAD_SHARE * mean_members
        count = int(dead.sum())
        self.codebook_VZ[dead] = vectors_PZ[torch.randint(len(vectors_PZ), (count,))]
        self.members_V[dead] = mean_members
        self.sums_VZ[dead] = self.codebook_VZ[dead] * mean_members
        return count


@torch.no_grad()
def initialize(tokenizer: ImageTokenizer) -> None:
    """Start values: convolutions that keep the size of a signal, every residual branch closed.

    PyTorch's own start values shrink signals; with these the error after 80 steps is half as large.
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
    """Train in place; the published weights are the average over the last steps."""
    torch.manual_seed(settings.seed)
    initialize(tokenizer)
    codebook = CodebookAverage(tokenizer, params.codebook_decay)
    # Convolutions in float32 are faster with channels last; in bfloat16 they are slower.
    layout = torch.contiguous_format if settings.precision == "bf16" else torch.channels_last
    tokenizer.to(memory_format=layout).train()
    with torch.no_grad():
        first = tokenizer.latent(pool.pixels_at(torch.arange(min(FIRST_BATCH, len(pool)))))
        codebook.start_from(first.flatten(2).mT.flatten(0, 1))

    def losses_at(step: int) -> dict[str, Tensor]:
        pixels_B3HW = pool.pixels_at(batch_indices(step, params.batch, len(pool), settings.seed))
        made = tokenizer(pixels_B3HW)
        vectors_PZ = codebook.update(made.quantized.codes, made.quantized.vectors)
        if step % params.revive_every == params.revive_every - 1 and step < REVIVE_SHARE * params.steps:
            codebook.revive(vectors_PZ)
        return {
            "absolute": F.l1_loss(made.pixels.float(), pixels_B3HW),
            "squared": SQUARED_WEIGHT * F.mse_loss(made.pixels.float(), pixels_B3HW),
            "edges": EDGE_WEIGHT * edge_loss(made.pixels.float(), pixels_B3HW),
            "quantizer": made.quantized.loss.float(),
        }

    others = (codebook.codebook_VZ, codebook.members_V, codebook.sums_VZ)
    fit([tokenizer], params, settings, losses_at, others).copy_to_parameters()
    tokenizer.to(memory_format=torch.contiguous_format).requires_grad_(False).eval()


@torch.no_grad()
def psnr(tokenizer: ImageTokenizer, pool: ScenePool, count: int) -> float:
    """Peak signal-to-noise ratio of reconstructions in dB, mean over pictures."""
    pixels_B3HW = pool.pixels_at(torch.arange(min(count, len(pool))))
    made_B3HW = tokenizer.decode(tokenizer.encode(pixels_B3HW))
    error_B = ((made_B3HW - pixels_B3HW) / 2).square().mean(dim=(1, 2, 3))
    return float((-10 * error_B.log10()).mean())
