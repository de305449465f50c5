"""One-dimensional convolutions with known reach, and weight normalisation over whole networks."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

_NORMALISED = (nn.Conv1d, nn.ConvTranspose1d, nn.Conv2d)


class SameConv1d(nn.Conv1d):
    """Convolution that keeps the length; an odd total padding puts the extra sample on the right.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: taps.
        dilation: samples between taps.
        bias: whether a bias is learned.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, dilation: int = 1, bias: bool = True
    ) -> None:
        total = dilation * (kernel_size - 1)
        even = total % 2 == 0
        super().__init__(
            in_channels, out_channels, kernel_size, dilation=dilation, bias=bias, padding=total // 2 if even else 0
        )
        self.reach = (total // 2, total - total // 2)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(batch, in_channels, sample) -> (batch, out_channels, sample)."""
        before, after = self.reach
        return super().forward(hidden if before == after else nn.functional.pad(hidden, (before, after)))


class UpsamplingConv1d(nn.ConvTranspose1d):
    """Transposed convolution by an integer rate, padded by half of what the kernel exceeds the rate.

    The output has `rate` samples per input sample, and one more at the very end if kernel minus rate is odd.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: taps, at least `rate`.
        rate: output samples per input sample.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, rate: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride=rate, padding=(kernel_size - rate) // 2)

    def sources(self, first: int, last: int) -> tuple[int, int]:
        """The input samples that the output samples `first..last` depend on."""
        rate, padding, kernel = self.stride[0], self.padding[0], self.kernel_size[0]
        return -((kernel - 1 - first - padding) // rate), (last + padding) // rate


def fold_weight_norm(magnitude: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """The weight `g * v / |v|` of a weight-normalised layer; the norm is over every axis but the first."""
    return torch._weight_norm(direction, magnitude, 0)


def split_weight_norm(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(magnitude, direction) of a weight: the inverse of `fold_weight_norm`."""
    norm = weight.flatten(1).norm(dim=1).reshape(-1, *[1] * (weight.ndim - 1))
    return norm, weight.clone()


def has_weight_norm(module: nn.Module) -> bool:
    """Whether any layer below is weight-normalised."""
    return any(parametrize.is_parametrized(layer, "weight") for layer in module.modules())


def apply_weight_norm(module: nn.Module) -> None:
    """Weight-normalise every convolution below `module` (training of GAN vocoders); its function does not change."""
    for layer in module.modules():
        if isinstance(layer, _NORMALISED) and not parametrize.is_parametrized(layer, "weight"):
            parametrizations.weight_norm(layer, "weight", dim=0)


def remove_weight_norm(module: nn.Module) -> None:
    """Fold every weight norm below `module` into plain weights; its function does not change."""
    for layer in module.modules():
        if isinstance(layer, _NORMALISED) and parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)


__all__ = [
    "SameConv1d",
    "UpsamplingConv1d",
    "apply_weight_norm",
    "fold_weight_norm",
    "has_weight_norm",
    "remove_weight_norm",
    "split_weight_norm",
]
