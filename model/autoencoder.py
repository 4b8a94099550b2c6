"""Convolutional encoder and decoder of the image tokenizer: pixels <-> latent map.

Source: the VQGAN autoencoder of latent diffusion (arXiv:2112.10752), as in VAR's released
models/basic_vae.py.
"""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ImageTokenizerConfig
from model.errors import UserError

# Shape legend: B = batch, C = channels, Z = latent channels, H W = height and width, P = H * W.

NORM_EPS = 1e-6


def group_norm(groups: int, channels: int) -> nn.GroupNorm:
    """Group normalisation; UserError when the channels cannot be divided evenly into the groups."""
    if channels % groups:
        raise UserError(f"channels must be multiples of norm_groups {groups}, got {channels}")
    return nn.GroupNorm(groups, channels, eps=NORM_EPS)


def conv3(inputs: int, outputs: int) -> nn.Conv2d:
    """A 3x3 convolution that keeps height and width."""
    return nn.Conv2d(inputs, outputs, kernel_size=3, padding=1)


class ResidualBlock(nn.Module):
    """Two normalised convolutions and a shortcut, a 1x1 convolution where the number of channels changes."""

    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = group_norm(groups, inputs), conv3(inputs, outputs)
        self.norm2, self.conv2 = group_norm(groups, outputs), conv3(outputs, outputs)
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, kernel_size=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BCHW = self.conv1(F.silu(self.norm1(x_BCHW)))
        h_BCHW = self.conv2(F.silu(self.norm2(h_BCHW)))
        return self.shortcut(x_BCHW) + h_BCHW


class PixelAttention(nn.Module):
    """Single-head self-attention over all positions of a feature map, as a residual branch."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = group_norm(groups, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, kernel_size=1)
        self.out = nn.Conv2d(channels, channels, kernel_size=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        qkv_BCP = self.qkv(self.norm(x_BCHW)).flatten(2)
        q_BCP, k_BCP, v_BCP = qkv_BCP.chunk(3, dim=1)
        weights_BPP = (q_BCP.mT @ k_BCP * q_BCP.shape[1] ** -0.5).softmax(dim=2)
        return x_BCHW + self.out((v_BCP @ weights_BPP.mT).unflatten(2, x_BCHW.shape[2:]))


class Downsample(nn.Module):
    """Halves height and width; pads right and bottom only, as the published weights expect."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, stride=2)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.conv(F.pad(x_BCHW, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Doubles height and width: nearest neighbour, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv3(channels, channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.conv(F.interpolate(x_BCHW, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """Residual blocks of one resolution, each followed by attention where wanted, then the change to the
    next.
    """

    def __init__(
        self, inputs: int, outputs: int, num_blocks: int, with_attention: bool, resize: nn.Module, groups: int
    ) -> None:
        super().__init__()
        widths = [inputs] + [outputs] * num_blocks
        self.blocks = nn.ModuleList(ResidualBlock(a, b, groups) for a, b in pairwise(widths))
        self.attentions = nn.ModuleList(
            PixelAttention(outputs, groups) if with_attention else nn.Identity() for _ in self.blocks
        )
        self.resize = resize

    def forward(self, x_BCHW: Tensor) -> Tensor:
        for block, attention in zip(self.blocks, self.attentions, strict=True):
            x_BCHW = attention(block(x_BCHW))
        return self.resize(x_BCHW)


def middle(channels: int, groups: int) -> nn.Sequential:
    """Residual block, attention, residual block, at the lowest resolution."""
    return nn.Sequential(
        ResidualBlock(channels, channels, groups),
        PixelAttention(channels, groups),
        ResidualBlock(channels, channels, groups),
    )


class Encoder(nn.Module):
    """Pixels (B, 3, H, W) -> latent map (B, Z, h, w)."""

    def __init__(self, config: ImageTokenizerConfig) -> None:
        super().__init__()
        widths, last = config.channels, len(config.channels) - 1
        self.pixel_block = config.pixel_block
        self.conv_in = conv3(3 * config.pixel_block**2, widths[0])
        self.levels = nn.ModuleList(
            Level(
                inputs=widths[max(level - 1, 0)],
                outputs=width,
                num_blocks=config.encoder_blocks,
                with_attention=level == last,
                resize=nn.Identity() if level == last else Downsample(width),
                groups=config.norm_groups,
            )
            for level, width in enumerate(widths)
        )
        self.middle = middle(widths[-1], config.norm_groups)
        self.norm_out = group_norm(config.norm_groups, widths[-1])
        self.conv_out = conv3(widths[-1], config.latent_dim)

    def forward(self, x_B3HW: Tensor) -> Tensor:
        h_BCHW = self.conv_in(F.pixel_unshuffle(x_B3HW, self.pixel_block))
        for level in self.levels:
            h_BCHW = level(h_BCHW)
        return self.conv_out(F.silu(self.norm_out(self.middle(h_BCHW))))


class Decoder(nn.Module):
    """Latent map (B, Z, h, w) -> pixels (B, 3, H, W); its levels go from the lowest resolution to the
    highest.
    """

    def __init__(self, config: ImageTokenizerConfig) -> None:
        super().__init__()
        widths = config.channels[::-1]
        last = len(widths) - 1
        self.conv_in = conv3(config.latent_dim, widths[0])
        self.middle = middle(widths[0], config.norm_groups)
        self.levels = nn.ModuleList(
            Level(
                inputs=widths[max(level - 1, 0)],
                outputs=width,
                num_blocks=config.decoder_blocks,
                with_attention=level == 0,
                resize=nn.Identity() if level == last else Upsample(width),
                groups=config.norm_groups,
            )
            for level, width in enumerate(widths)
        )
        self.pixel_block = config.pixel_block
        self.norm_out = group_norm(config.norm_groups, widths[-1])
        self.conv_out = conv3(widths[-1], 3 * config.pixel_block**2)

    def forward(self, z_BZHW: Tensor) -> Tensor:
        h_BCHW = self.middle(self.conv_in(z_BZHW))
        for level in self.levels:
            h_BCHW = level(h_BCHW)
        blocks_BCHW = self.conv_out(F.silu(self.norm_out(h_BCHW)))
        return F.pixel_shuffle(blocks_BCHW, self.pixel_block)
