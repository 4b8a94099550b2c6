"""Trains the vision tower of a tiny model, from random weights, to classify digit, colour and background.

A share of each batch has random colours and the loss of the digit only. Otherwise the tower learns that
held-out pairs of digit and colour never occur: 61 % of those were classified correctly, with it 91 %.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.backbones import VisionTower
from model.training_attention import training_attention
from model.transforms import CLIP_MEAN, CLIP_STD
from training.backbones.fit import FitSettings, fit
from training.digits.scene_pool import ScenePool, batch_indices
from training.digits.scenes import BACKGROUNDS, COLORS
from training.params import VisionParams

# Shape legend: B = batch, H W = height and width, P = positions of one image, D = vision width.

LABEL_SMOOTHING = 0.05
# Least difference between the colours of digit and background in any one channel, 0 to 1.
MIN_CONTRAST = 0.35


class AttributeHeads(nn.Module):
    """Linear classifiers of digit, colour and background, on class token and mean patch."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.digit = nn.Linear(2 * width, 10)
        self.color = nn.Linear(2 * width, len(COLORS))
        self.background = nn.Linear(2 * width, len(BACKGROUNDS))

    def forward(self, features_BPD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pooled = torch.cat([features_BPD[:, 0], features_BPD[:, 1:].mean(1)], dim=1)
        return self.digit(pooled), self.color(pooled), self.background(pooled)


def _palette(colors: dict[str, tuple[int, int, int]], device: torch.device) -> Tensor:
    return torch.tensor(list(colors.values()), device=device) / 255.0


def in_random_colors(pool: ScenePool, index_B: Tensor) -> Tensor:
    """Scenes in random colours of digit and background, clearly different; pixels in [0, 1], (B, 3, H, W)."""
    pixels_B3HW = pool.pixels[index_B].float() / 255
    digit_B3, background_B3 = (
        _palette(COLORS, pool.pixels.device)[pool.colors[index_B]],
        _palette(BACKGROUNDS, pool.pixels.device)[pool.backgrounds[index_B]],
    )
    span_B3 = digit_B3 - background_B3
    ink_BHW = torch.einsum("bchw,bc->bhw", pixels_B3HW - background_B3[..., None, None], span_B3)
    ink_B1HW = (ink_BHW / span_B3.square().sum(1)[:, None, None]).clamp(0, 1)[:, None]
    # Random numbers are drawn on the CPU, so that they are the same for every device.
    new_background_B3 = torch.rand(len(index_B), 3).to(pixels_B3HW)
    new_digit_B3 = torch.rand(len(index_B), 3).to(pixels_B3HW)
    is_low_contrast_B = (new_digit_B3 - new_background_B3).abs().amax(1) < MIN_CONTRAST
    new_digit_B3[is_low_contrast_B] = (new_background_B3[is_low_contrast_B] + 0.5) % 1
    new_span_B3 = new_digit_B3 - new_background_B3
    return new_background_B3[..., None, None] + ink_B1HW * new_span_B3[..., None, None]


def clip_normalized(pixels_B3HW: Tensor) -> Tensor:
    """Pixels in [0, 1], normalized as the vision tower takes them, (B, 3, H, W)."""
    mean, std = (pixels_B3HW.new_tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    return (pixels_B3HW - mean) / std


def train_vision(
    tower: VisionTower, pool: ScenePool, params: VisionParams, settings: FitSettings
) -> AttributeHeads:
    """Train the tower in place, on scenes of the pool; returns the classifiers it was trained with."""
    torch.manual_seed(settings.seed)
    heads = AttributeHeads(tower.clip.config.hidden_size).to(tower.clip.device)
    tower.requires_grad_(True).train()
    num_random = round(params.random_colors * params.batch)

    def compute_losses(step: int) -> dict[str, Tensor]:
        index_B = batch_indices(step, params.batch, len(pool), settings.seed)
        plain_B, random_B = index_B[num_random:], index_B[:num_random]
        pixels = torch.cat([in_random_colors(pool, random_B), pool.pixels[plain_B].float() / 255])
        digit, color, background = heads(tower(clip_normalized(pixels)))
        return {
            "digit": _loss(digit, pool.digits[index_B]),
            "color": _loss(color[num_random:], pool.colors[plain_B]),
            "background": _loss(background[num_random:], pool.backgrounds[plain_B]),
        }

    with training_attention(tower.clip, settings.precision):
        fit([tower, heads], params, settings, compute_losses)
    tower.requires_grad_(False).eval()
    return heads


def _loss(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), targets, label_smoothing=LABEL_SMOOTHING)
