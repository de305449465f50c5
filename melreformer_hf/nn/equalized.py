"""Layers with equalized learning rates: weights of unit variance, scaled by their fan-in when they are used.

Source: Karras et al., Progressive growing of GANs (arXiv 1710.10196), as in StyleGAN2 (arXiv 1912.04958).
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn.functional import conv2d, leaky_relu, linear

_SLOPE = 0.2


def scaled_leaky_relu(hidden: torch.Tensor) -> torch.Tensor:
    """Leaky ReLU of slope 0.2 times the square root of two, which keeps the variance."""
    return leaky_relu(hidden, _SLOPE) * math.sqrt(2.0)


class EqualizedLinear(nn.Module):
    """Linear layer.

    Args:
        in_features: inputs.
        out_features: outputs.
        rate_multiplier: weights and biases learn this much slower; they are stored divided by it.
        bias_value: initial bias.
    """

    def __init__(
        self, in_features: int, out_features: int, rate_multiplier: float = 1.0, bias_value: float = 0.0
    ) -> None:
        super().__init__()
        self.rate_multiplier, self.bias_value = rate_multiplier, bias_value
        self.scale = rate_multiplier / math.sqrt(in_features)
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / rate_multiplier)
        self.bias = nn.Parameter(torch.full((out_features,), bias_value))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(..., in_features) -> (..., out_features)."""
        return linear(hidden, self.weight * self.scale, self.bias * self.rate_multiplier)


class EqualizedConv2d(nn.Module):
    """Convolution.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: taps of either axis.
        stride: of both axes.
        padding: zeros on every side.
        bias: whether a bias is learned.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.stride, self.padding = stride, padding
        self.scale = 1.0 / math.sqrt(in_channels * kernel_size**2)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(batch, in_channel, row, column) -> (batch, out_channel, row', column')."""
        return conv2d(hidden, self.weight * self.scale, self.bias, stride=self.stride, padding=self.padding)


__all__ = ["EqualizedConv2d", "EqualizedLinear", "scaled_leaky_relu"]
