"""Convolutional encoder and decoder of the VQGAN family.

Esser, Rombach, Ommer, Taming Transformers (arXiv 2012.09841), in the sizes of SpecVQGAN (arXiv 2110.08791).
Deviation: attention runs through torch's fused kernel, so that no position x position tensor is kept.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.functional import avg_pool2d, interpolate, pad, silu
from transformers.modeling_layers import GradientCheckpointingLayer

from melreformer_hf.nn.attention import attend

# The original's, smaller than torch's default of 1e-5; checkpoints need the same.
_NORM_EPSILON = 1e-6


class ResidualBlock2d(nn.Module):
    """Two normalized 3x3 convolutions beside a shortcut, which is 1x1 where the width changes."""

    def __init__(self, in_channels: int, out_channels: int, groups: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=_NORM_EPSILON)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=_NORM_EPSILON)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        # A 1x1 convolution only where the sum would not fit: elsewhere the input passes unchanged.
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(batch, in, height, width) -> (batch, out, height, width)."""
        change = self.conv1(silu(self.norm1(hidden)))
        return self.shortcut(hidden) + self.conv2(self.dropout(silu(self.norm2(change))))


class AttentionBlock2d(nn.Module):
    """Single-head attention among all positions of a picture, added to it."""

    attn_implementation = "sdpa"

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=_NORM_EPSILON)
        self.query = nn.Conv2d(channels, channels, 1)
        self.key = nn.Conv2d(channels, channels, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(batch, channel, height, width) -> the same shape."""
        normed = self.norm(hidden)
        # (batch, channel, row, column) -> (batch, 1 head, position, channel); every position attends to all.
        query, key, value = (
            layer(normed).flatten(2).transpose(1, 2).unsqueeze(1) for layer in (self.query, self.key, self.value)
        )
        attended, _ = attend(self, query, key, value)  # (batch, position, 1 head, channel)
        return hidden + self.out(attended.squeeze(2).transpose(1, 2).unflatten(2, hidden.shape[2:]))


class Downsample2d(nn.Module):
    """Halve both axes: one zero row below and column at the right, then a 3x3 convolution with stride 2; or by means."""

    def __init__(self, channels: int, with_conv: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2) if with_conv else None

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(batch, channel, height, width) -> (batch, channel, height / 2, width / 2)."""
        # On one side only, as the original pads; zeros on all sides would move the grid by one row and one column.
        return avg_pool2d(hidden, 2) if self.conv is None else self.conv(pad(hidden, (0, 1, 0, 1)))


class Upsample2d(nn.Module):
    """Double both axes by repetition, then a 3x3 convolution where asked for."""

    def __init__(self, channels: int, with_conv: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if with_conv else nn.Identity()

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(batch, channel, height, width) -> (batch, channel, 2 * height, 2 * width)."""
        return self.conv(interpolate(hidden, scale_factor=2.0, mode="nearest"))


class Level(GradientCheckpointingLayer):
    """Residual blocks of one resolution, with attention after each where asked for, and a change of resolution."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_blocks: int,
        groups: int,
        dropout: float,
        attention: bool,
        resample: nn.Module | None,
    ) -> None:
        super().__init__()
        # The first block of a level changes the width, the others keep it.
        widths = [in_channels, *[out_channels] * num_blocks]
        self.blocks = nn.ModuleList(
            ResidualBlock2d(width, out_channels, groups, dropout) for width in widths[:num_blocks]
        )
        self.attentions = nn.ModuleList(
            AttentionBlock2d(out_channels, groups) if attention else nn.Identity() for _ in range(num_blocks)
        )
        self.resample = resample if resample is not None else nn.Identity()

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(batch, in, height, width) -> (batch, out, new height, new width)."""
        for block, attention in zip(self.blocks, self.attentions, strict=True):
            hidden = attention(block(hidden))
        return self.resample(hidden)


class Middle(GradientCheckpointingLayer):
    """Residual block, attention, residual block at the lowest resolution."""

    def __init__(self, channels: int, groups: int, dropout: float) -> None:
        super().__init__()
        self.block1 = ResidualBlock2d(channels, channels, groups, dropout)
        self.attention = AttentionBlock2d(channels, groups)
        self.block2 = ResidualBlock2d(channels, channels, groups, dropout)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(batch, channel, height, width) -> the same shape."""
        return self.block2(self.attention(self.block1(hidden)))


@dataclasses.dataclass(frozen=True)
class VqganShape:
    """What encoder and decoder have in common.

    Args:
        latent_channels: channels of the latent grid.
        base_channels: width that the multipliers multiply.
        multipliers: width of each level, from the full resolution downwards.
        num_blocks: residual blocks per level of the encoder; the decoder has one more.
        groups: groups of every normalization.
        dropout: inside the residual blocks.
        resample_with_conv: whether levels change resolution by convolutions.
    """

    latent_channels: int
    base_channels: int
    multipliers: Sequence[int]
    num_blocks: int
    groups: int
    dropout: float
    resample_with_conv: bool

    @property
    def widths(self) -> list[int]:
        """Channels of each level, from the full resolution downwards."""
        return [self.base_channels * multiplier for multiplier in self.multipliers]


class VqganEncoder(nn.Module):
    """Picture to latent grid, `2 ** (levels - 1)` times smaller on both axes.

    Args:
        in_channels: channels of the picture.
        shape: widths and depths.
        attention_levels: levels that have attention.
    """

    def __init__(self, in_channels: int, shape: VqganShape, attention_levels: Sequence[int]) -> None:
        super().__init__()
        widths, groups, dropout = shape.widths, shape.groups, shape.dropout
        self.conv_in = nn.Conv2d(in_channels, shape.base_channels, 3, padding=1)
        self.levels = nn.ModuleList()
        # Levels are numbered from the full resolution, so that encoder and decoder agree about attention_levels.
        before = shape.base_channels
        for index, width in enumerate(widths):
            resample = Downsample2d(width, shape.resample_with_conv) if index < len(widths) - 1 else None
            level = Level(before, width, shape.num_blocks, groups, dropout, index in attention_levels, resample)
            self.levels.append(level)
            before = width
        self.middle = Middle(before, groups, dropout)
        self.norm_out = nn.GroupNorm(groups, before, eps=_NORM_EPSILON)
        self.conv_out = nn.Conv2d(before, shape.latent_channels, 3, padding=1)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """(batch, in_channels, height, width) -> (batch, latent_channels, height / stride, width / stride)."""
        hidden = self.conv_in(pictures)
        for level in self.levels:
            hidden = level(hidden)
        return self.conv_out(silu(self.norm_out(self.middle(hidden))))


class VqganDecoder(nn.Module):
    """Latent grid to picture.

    Levels are numbered from the full resolution as in the encoder, and run from the last to the first.

    Args:
        out_channels: channels of the picture.
        shape: the encoder's.
        attention_levels: levels that have attention.
    """

    def __init__(self, out_channels: int, shape: VqganShape, attention_levels: Sequence[int]) -> None:
        super().__init__()
        widths, groups, dropout = shape.widths, shape.groups, shape.dropout
        self.conv_in = nn.Conv2d(shape.latent_channels, widths[-1], 3, padding=1)
        self.middle = Middle(widths[-1], groups, dropout)
        levels = []
        for index, width in enumerate(widths):
            # The coarser level is run before this one; the coarsest follows the middle, which has its width.
            before = widths[min(index + 1, len(widths) - 1)]
            resample = Upsample2d(width, shape.resample_with_conv) if index > 0 else None
            blocks = shape.num_blocks + 1
            levels.append(Level(before, width, blocks, groups, dropout, index in attention_levels, resample))
        self.levels = nn.ModuleList(levels)
        self.norm_out = nn.GroupNorm(groups, widths[0], eps=_NORM_EPSILON)
        self.conv_out = nn.Conv2d(widths[0], out_channels, 3, padding=1)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """(batch, latent_channels, height, width) -> (batch, out_channels, height * stride, width * stride)."""
        hidden = self.middle(self.conv_in(latents))
        for level in reversed(self.levels):
            hidden = level(hidden)
        return self.conv_out(silu(self.norm_out(hidden)))


__all__ = ["AttentionBlock2d", "ResidualBlock2d", "VqganDecoder", "VqganEncoder", "VqganShape"]
