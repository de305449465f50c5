"""The generation that the original's page pictures as its current experiment: no U-Net, one stack of transformers.

Rebuilt from the description of `frame_transformer3.py` (carperbr/frame-transformer); no checkpoint of it was published.
A residual block halves features and frames, every channel attends to itself in every layer, and each layer adds its
scores to those of the layer before (He et al., RealFormer, arXiv 2012.11747). Deviation: an odd number of frames is
restored at the end, where the original needs an even one.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import interpolate

from melreformer_hf.models.frame_transformer.blocks_frame_transformer import (
    FrameNorm,
    MultichannelAttention,
    rotate_pairs,
    squared_relu,
)


class ResidualConvBlock(nn.Module):
    """Norm, two 3 x 3 convolutions with a squared ReLU between them, and a 1 x 1 convolution beside them.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        features: features of the input.
        stride: 2 halves features and frames, rounding up.
    """

    def __init__(self, in_channels: int, out_channels: int, features: int, stride: int = 1) -> None:
        super().__init__()
        self.norm = FrameNorm(in_channels, features)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.identity = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(batch, in_channels, feature, frame) -> (batch, out_channels, feature / stride, frame / stride)."""
        return self.identity(hidden) + self.conv2(squared_relu(self.conv1(self.norm(hidden))))


class ResidualAttention(MultichannelAttention):
    """Attention whose scores are added to those of the layer before."""

    always_eager = True

    def forward(self, hidden: torch.Tensor, scores: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Attend.

        Args:
            hidden: (batch, map, feature, frame).
            scores: (batch * map, head, frame, frame) of the layer before.

        Returns:
            the shape of `hidden`, and this layer's scores, before the softmax.
        """
        positions = torch.arange(hidden.shape[-1], device=hidden.device)
        query = rotate_pairs(self._heads(self.q_proj(hidden)), positions, self.num_turned)
        key = rotate_pairs(self._heads(self.k_proj(hidden)), positions, self.num_turned)
        # No fused kernel returns its scores. Their sum over all layers grows: half precision would lose the small ones.
        made = (query.float() @ key.float().transpose(-1, -2)) * self.scale
        made = made if scores is None else made + scores
        attended = made.softmax(-1).to(hidden.dtype) @ self._heads(self.v_proj(hidden))
        # (batch * map, head, frame, head_dim) -> (batch, map, feature, frame)
        return self.out_proj(attended.transpose(2, 3).reshape(hidden.shape)), made


class StackLayer(nn.Module):
    """Pre-norm attention in every channel, then 3 x 3 convolutions that mix the channels.

    Args:
        channels: channels, each a map.
        features: features of a map.
        num_heads: heads of a map.
        expansion: width of the hidden layer over the channels.
        kernel_size: frames of the attention's convolutions.
        rotary_factor: share of a head's features that rotary positions turn.
        dropout: on what both halves add.
    """

    def __init__(
        self,
        channels: int,
        features: int,
        num_heads: int,
        expansion: int,
        kernel_size: int,
        rotary_factor: float,
        dropout: float,
    ) -> None:
        super().__init__()
        self.attention_norm = FrameNorm(channels, features)
        self.attention = ResidualAttention(channels, features, num_heads, kernel_size, rotary_factor=rotary_factor)
        self.mlp_norm = FrameNorm(channels, features)
        self.up_conv = nn.Conv2d(channels, channels * expansion, 3, padding=1, bias=False)
        self.down_conv = nn.Conv2d(channels * expansion, channels, 3, padding=1, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: torch.Tensor, scores: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """(batch, channel, feature, frame) and the scores of the layer before -> the same shape, and its own."""
        change, scores = self.attention(self.attention_norm(hidden), scores)
        hidden = hidden + self.dropout(change)
        change = self.down_conv(squared_relu(self.up_conv(self.mlp_norm(hidden))))
        return hidden + self.dropout(change), scores


class FrameStack(nn.Module):
    """Residual block to half the resolution, layers, and back by interpolation and a second block.

    Args:
        in_channels: channels of the spectra.
        channels: channels of everything inside, and of the output.
        features: features of the spectra, even.
        num_layers: layers.
        num_heads, expansion, kernel_size, rotary_factor, dropout: see `StackLayer`.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        features: int,
        num_layers: int,
        num_heads: int,
        expansion: int,
        kernel_size: int = 3,
        rotary_factor: float = 1.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        self.encoder = ResidualConvBlock(in_channels, channels, features, stride=2)
        self.layers = nn.ModuleList(
            StackLayer(channels, features // 2, num_heads, expansion, kernel_size, rotary_factor, dropout)
            for _ in range(num_layers)
        )
        self.decoder = ResidualConvBlock(channels, channels, features)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(batch, in_channels, feature, frame) -> (batch, channels, feature, frame)."""
        size, scores = hidden.shape[2:], None
        hidden = self.encoder(hidden)
        for layer in self.layers:
            if self.gradient_checkpointing and self.training:
                hidden, scores = self._gradient_checkpointing_func(layer.__call__, hidden, scores)
            else:
                hidden, scores = layer(hidden, scores)
        return self.decoder(interpolate(hidden, size=size, mode="bilinear", align_corners=True))


__all__ = ["FrameStack", "ResidualAttention", "ResidualConvBlock", "StackLayer"]
