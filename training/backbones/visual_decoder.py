"""The class-conditional visual decoder of a tiny model: what VAR-d30 is to the published one.

The class is the sum of an embedding of digit, colour and background, or a null vector. It opens the pyramid
and nothing else: adaptive layer norms get the start embedding, as VARGPT will give it to them. (VAR gives
them the class; a decoder that relies on it must learn anew to listen once VARGPT drives it.)
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

# Shape legend: S = scenes, B = batch, L = tokens of the pyramid, C = decoder width, V = codebook size.

ENCODE_BATCH = 250


class SceneClass(nn.Module):
    """Digit, colour and background as one vector; thrown away when the language model takes its place."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Embedding(n, width) for n in (10, len(COLORS), len(BACKGROUNDS)))
        self.null = nn.Parameter(torch.zeros(width))
        for part in self.parts:
            nn.init.normal_(part.weight, std=width**-0.5)

    def forward(self, pool: ScenePool, index_B: Tensor, dropped_B: Tensor) -> Tensor:
        attributes = (pool.digits, pool.colors, pool.backgrounds)
        class_BC = sum(part(values[index_B]) for part, values in zip(self.parts, attributes, strict=True))
        return torch.where(dropped_B[:, None], self.null, class_BC)


def class_logits(decoder: VisualDecoder, class_BC: Tensor, dropped_B: Tensor, seen_BMZ: Tensor) -> Tensor:
    """Teacher-forced logits of pictures of a class, (B, L, V)."""
    config = decoder.config
    rows_B = torch.where(dropped_B, config.null_start, config.image_start)
    return decoder.predict(decoder.embed(class_BC, seen_BMZ), decoder.start_embedding(rows_B))


@torch.no_grad()
def pool_latents(tokenizer: ImageTokenizer, pool: ScenePool) -> Tensor:
    """What is quantized of every scene, (S, Z, H, W)."""
    batches = torch.arange(len(pool)).split(ENCODE_BATCH)
    return torch.cat([tokenizer.latent(pool.pixels_at(index_B)).float() for index_B in batches])


def train_decoder(
    decoder: VisualDecoder,
    tokenizer: ImageTokenizer,
    pool: ScenePool,
    params: DecoderParams,
    settings: FitSettings,
) -> SceneClass:
    """Train in place; the classes that it was trained with, for measuring."""
    torch.manual_seed(settings.seed)
    decoder.initialize()
    device = decoder.position.device
    classes = SceneClass(decoder.config.width).to(device)
    with settings.autocast():
        latents_SZHW = pool_latents(tokenizer, pool)
    decoder.requires_grad_(True).train()

    def losses_at(step: int) -> dict[str, Tensor]:
        index_B = batch_indices(step, params.batch, len(pool), settings.seed)
        # Random numbers come from the CPU, the same on every device.
        dropped_B = (torch.rand(len(index_B)) < params.drop).to(device)
        replacements_BL = random_replacements(len(index_B), tokenizer.config, params.code_corruption)
        asked = teacher_forcing_from_latent(
            tokenizer, latents_SZHW[index_B], replacements_BL.to(device), params.softness
        )
        logits_BLV = class_logits(decoder, classes(pool, index_B, dropped_B), dropped_B, asked.seen)
        targets = asked.codes if asked.soft_targets is None else asked.soft_targets
        return {"codes": F.cross_entropy(logits_BLV.flatten(0, 1).float(), targets.flatten(0, 1))}

    fit([decoder, classes], params, settings, losses_at).copy_to_parameters()
    decoder.requires_grad_(False).eval()
    return classes
