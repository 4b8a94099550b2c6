"""Trains the visual decoder of a tiny model, from random weights, to draw scenes of a class, as VAR does.

The class takes the place of the language model's output, at the first token of the pyramid. In VAR the class
also conditions the adaptive layer norms; here they get the start embedding, as in VARGPT, so that stage 1
need not unlearn it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.image_tokenizer import ImageTokenizer, teacher_forcing_from_latent
from model.visual_decoder import VisualDecoder
from training.backbones.fit import FitSettings, fit
from training.data.code_corruption import random_replacements
from training.digits.scene_pool import ScenePool, batch_indices
from training.digits.scenes import BACKGROUNDS, COLORS
from training.params import DecoderParams

# Shape legend: S = scenes, B = batch, L = tokens of the pyramid, M = L - 1, C = decoder width, V = codebook
# size, Z = latent channels, H W = finest grid.

ENCODE_BATCH = 250


class ClassEmbedding(nn.Module):
    """The class of a scene as a vector: the sum of its embeddings of digit, colour and background."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attributes = nn.ModuleList(nn.Embedding(n, width) for n in (10, len(COLORS), len(BACKGROUNDS)))
        self.null = nn.Parameter(torch.zeros(width))
        for embedding in self.attributes:
            nn.init.normal_(embedding.weight, std=width**-0.5)

    def forward(self, pool: ScenePool, index_B: Tensor, is_dropped_B: Tensor) -> Tensor:
        """Vectors of scenes of the pool, the null vector where the class is dropped, (B, C)."""
        values = (pool.digits, pool.colors, pool.backgrounds)
        class_BC = sum(
            embedding(indices[index_B]) for embedding, indices in zip(self.attributes, values, strict=True)
        )
        return torch.where(is_dropped_B[:, None], self.null, class_BC)


def class_conditional_logits(
    decoder: VisualDecoder, class_BC: Tensor, is_dropped_B: Tensor, seen_BMZ: Tensor
) -> Tensor:
    """Logits of all codes with teacher forcing, (B, L, V).

    Args:
        class_BC: In place of the language model's output at the first token.
        seen_BMZ: Teacher-forcing input of all scales but the first.
    """
    config = decoder.config
    rows_B = torch.where(is_dropped_B, config.null_start, config.image_start)
    return decoder.predict(decoder.embed(class_BC, seen_BMZ), decoder.start_embedding(rows_B))


@torch.no_grad()
def pool_latents(tokenizer: ImageTokenizer, pool: ScenePool) -> Tensor:
    """Latents of all scenes before quantization, (S, Z, H, W)."""
    batches = torch.arange(len(pool)).split(ENCODE_BATCH)
    return torch.cat([tokenizer.latent(pool.pixels_at(index_B)).float() for index_B in batches])


def train_decoder(
    decoder: VisualDecoder,
    tokenizer: ImageTokenizer,
    pool: ScenePool,
    params: DecoderParams,
    settings: FitSettings,
) -> ClassEmbedding:
    """Train the decoder in place, on codes of the pool; returns the class embedding it was trained with."""
    torch.manual_seed(settings.seed)
    decoder.initialize()
    device = decoder.position.device
    class_embedding = ClassEmbedding(decoder.config.width).to(device)
    with settings.autocast():
        latents_SZHW = pool_latents(tokenizer, pool)
    decoder.requires_grad_(True).train()

    def compute_losses(step: int) -> dict[str, Tensor]:
        index_B = batch_indices(step, params.batch, len(pool), settings.seed)
        # Random numbers are drawn on the CPU, so that they are the same for every device.
        is_dropped_B = (torch.rand(len(index_B)) < params.drop).to(device)
        replacements_BL = random_replacements(len(index_B), tokenizer.config, params.code_corruption)
        forced = teacher_forcing_from_latent(
            tokenizer, latents_SZHW[index_B], replacements_BL.to(device), params.softness
        )
        class_BC = class_embedding(pool, index_B, is_dropped_B)
        logits_BLV = class_conditional_logits(decoder, class_BC, is_dropped_B, forced.decoder_input)
        targets = forced.codes if forced.soft_targets is None else forced.soft_targets
        return {"codes": F.cross_entropy(logits_BLV.flatten(0, 1).float(), targets.flatten(0, 1))}

    fit([decoder, class_embedding], params, settings, compute_losses)
    decoder.requires_grad_(False).eval()
    return class_embedding
