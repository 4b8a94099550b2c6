"""The vision tower of a tiny model, trained from nothing to name what a scene shows.

Half of each batch is shown in random colours and asked for the digit only: a tower that knows only the pairs
of digit and colour in the training data learns that some never occur (measured in the tiny recipe: held-out
pairs 61 % without, 91 % with).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.backbones import VisionTower
from model.cpu_kernels import eager_attention
from model.transforms import CLIP_MEAN, CLIP_STD
from training.backbones.fit import FitSettings, fit
from training.digits.scene_pool import ScenePool, batch_indices
from training.digits.scenes import BACKGROUNDS, COLORS
from training.params import VisionParams

# Shape legend: B = batch, H W = height and width, P = positions of one image, D = vision width.

LABEL_SMOOTHING = 0.05
MIN_CONTRAST = 0.35
MAX_SHIFT = 2


class AttributeHeads(nn.Module):
    """Linear classifiers of digit, colour and background, on class token and mean patch; not published."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.digit = nn.Linear(2 * width, 10)
        self.color = nn.Linear(2 * width, len(COLORS))
        self.background = nn.Linear(2 * width, len(BACKGROUNDS))

    def forward(self, features_BPD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        read = torch.cat([features_BPD[:, 0], features_BPD[:, 1:].mean(1)], dim=1)
        return self.digit(read), self.color(read), self.background(read)


def _palette(colors: dict[str, tuple[int, int, int]], device: torch.device) -> Tensor:
    return torch.tensor(list(colors.values()), device=device) / 255.0


def in_random_colors(pool: ScenePool, index_B: Tensor) -> Tensor:
    """The same digits in two random colours, far enough apart to see; pixels in [0, 1], (B, 3, H, W)."""
    pixels_B3HW = pool.pixels[index_B].float() / 255
    front_B3, back_B3 = (
        _palette(COLORS, pool.pixels.device)[pool.colors[index_B]],
        _palette(BACKGROUNDS, pool.pixels.device)[pool.backgrounds[index_B]],
    )
    span_B3 = front_B3 - back_B3
    ink_BHW = torch.einsum("bchw,bc->bhw", pixels_B3HW - back_B3[..., None, None], span_B3)
    ink_B1HW = (ink_BHW / span_B3.square().sum(1)[:, None, None]).clamp(0, 1)[:, None]
    # Random numbers come from the CPU, the same on every device.
    new_back_B3 = torch.rand(len(index_B), 3).to(pixels_B3HW)
    new_front_B3 = torch.rand(len(index_B), 3).to(pixels_B3HW)
    near_B = (new_front_B3 - new_back_B3).abs().amax(1) < MIN_CONTRAST
    new_front_B3[near_B] = (new_back_B3[near_B] + 0.5) % 1
    return new_back_B3[..., None, None] + ink_B1HW * (new_front_B3 - new_back_B3)[..., None, None]


def clip_normalized(pixels_B3HW: Tensor) -> Tensor:
    """Pixels in [0, 1] as the vision tower takes them."""
    mean, std = (pixels_B3HW.new_tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    return (pixels_B3HW - mean) / std


def train_vision(
    tower: VisionTower, pool: ScenePool, params: VisionParams, settings: FitSettings
) -> AttributeHeads:
    """Train in place; the heads that read it, for measuring."""
    torch.manual_seed(settings.seed)
    heads = AttributeHeads(tower.clip.config.hidden_size).to(tower.clip.device)
    tower.requires_grad_(True).train()
    num_random = round(params.random_colors * params.batch)

    def losses_at(step: int) -> dict[str, Tensor]:
        index_B = batch_indices(step, params.batch, len(pool), settings.seed)
        plain_B, random_B = index_B[num_random:], index_B[:num_random]
        pixels = torch.cat([in_random_colors(pool, random_B), pool.pixels[plain_B].float() / 255])
        digit, color, background = heads(tower(clip_normalized(pixels)))
        return {
            "digit": _loss(digit, pool.digits[index_B]),
            "color": _loss(color[num_random:], pool.colors[plain_B]),
            "background": _loss(background[num_random:], pool.backgrounds[plain_B]),
        }

    with eager_attention(tower.clip, settings.precision):
        fit([tower, heads], params, settings, losses_at).copy_to_parameters()
    tower.requires_grad_(False).eval()
    return heads


def _loss(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), targets, label_smoothing=LABEL_SMOOTHING)


@torch.no_grad()
def accuracies(tower: VisionTower, heads: AttributeHeads, pool: ScenePool) -> dict[str, float]:
    """Share of a pool's scenes whose digit, colour and background are named right."""
    found = heads(tower(clip_normalized(pool.pixels.float() / 255)))
    truth = {"digit": pool.digits, "color": pool.colors, "background": pool.backgrounds}
    return {
        name: float((logits.argmax(1) == right).float().mean())
        for (name, right), logits in zip(truth.items(), found, strict=True)
    }
