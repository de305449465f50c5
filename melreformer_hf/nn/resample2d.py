"""Resampling of pictures with a finite impulse response filter, in plain convolutions.

The operation that StyleGAN (arXiv 1812.04948, 1912.04958) calls upfirdn: insert zeros, pad, convolve, keep every n-th.
It is made of the library's differentiable convolutions, so that gradients of gradients (R1, path lengths) work.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.functional import conv2d, conv_transpose2d, pad


def fir_kernel(taps: Sequence[float], gain: float = 1.0) -> torch.Tensor:
    """Two-dimensional kernel of a separable filter.

    Args:
        taps: of either axis, scaled here to a sum of one.
        gain: sum of the kernel.

    Returns:
        (tap, tap) float32.

    Raises:
        ValueError: no taps, or taps that sum to zero.
    """
    if not len(taps) or sum(taps) == 0:
        raise ValueError(f"taps must hold numbers whose sum is not zero, got {tuple(taps)}.")
    line = torch.tensor(tuple(taps), dtype=torch.float64, device="cpu")
    return (torch.outer(line, line) / line.sum().square() * gain).float()


def upfirdn2d(
    hidden: torch.Tensor, kernel: torch.Tensor, up: int = 1, down: int = 1, padding: tuple[int, int] = (0, 0)
) -> torch.Tensor:
    """Insert `up - 1` zeros after every element, pad, convolve, keep every `down`-th; the same on both axes.

    Half precision is filtered in float32 and returned as it came.

    Args:
        hidden: (batch, channel, row, column).
        kernel: (tap, tap); a true convolution (the kernel is mirrored).
        up: factor of the zeros.
        down: factor of the decimation.
        padding: zeros before and after, counted after the zeros of `up`; negative crops.

    Returns:
        (batch, channel, (row * up + padding - tap) // down + 1, likewise column).
    """
    size, channels = kernel.shape[-1], hidden.shape[1]
    with torch.autocast(hidden.device.type, enabled=False):
        wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        weight = kernel.to(wide.dtype).expand(channels, 1, size, size)
        if up == 1:
            before, after = padding
            wide = pad(wide, (before, after, before, after))
            # The library correlates; a convolution has its kernel mirrored.
            result = conv2d(wide, weight.flip(-2, -1), stride=down, groups=channels)
        else:
            # A transposed convolution inserts the zeros and mirrors the kernel by itself.
            full = conv_transpose2d(wide, weight, stride=up, groups=channels)
            before, after = padding[0] - size + 1, padding[1] - size + up
            result = pad(full, (before, after, before, after))[..., ::down, ::down]
        return result.to(hidden.dtype)


class FirFilter2d(nn.Module):
    """A fixed filter as a module; its kernel is no part of checkpoints.

    Args:
        taps: of either axis.
        gain: sum of the kernel.
        up: factor of upsampling.
        down: factor of downsampling.
        padding: zeros before and after.
    """

    def __init__(
        self,
        taps: Sequence[float],
        gain: float = 1.0,
        up: int = 1,
        down: int = 1,
        padding: tuple[int, int] = (0, 0),
    ) -> None:
        super().__init__()
        self.taps, self.gain, self.up, self.down, self.padding = tuple(taps), gain, up, down, padding
        self.register_buffer("kernel", self.initial_kernel(), persistent=False)

    def initial_kernel(self) -> torch.Tensor:
        """The kernel, (tap, tap) float32."""
        return fir_kernel(self.taps, self.gain)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Filter (batch, channel, row, column)."""
        return upfirdn2d(hidden, self.kernel, self.up, self.down, self.padding)


def upsampling_filter(taps: Sequence[float]) -> FirFilter2d:
    """Twice as many rows and columns; brightness stays."""
    excess = len(taps) - 2
    return FirFilter2d(taps, gain=4.0, up=2, padding=((excess + 1) // 2 + 1, excess // 2))


def filter_after_transposed(taps: Sequence[float], kernel_size: int) -> FirFilter2d:
    """Smooths what a transposed convolution of stride 2 made; gives exactly twice the rows and columns."""
    excess = len(taps) - 2 - (kernel_size - 1)
    return FirFilter2d(taps, gain=4.0, padding=((excess + 1) // 2 + 1, excess // 2 + 1))


def filter_before_strided(taps: Sequence[float], kernel_size: int) -> FirFilter2d:
    """Smooths before an unpadded convolution of stride 2, which then gives half the rows and columns."""
    excess = len(taps) - 2 + (kernel_size - 1)
    return FirFilter2d(taps, padding=((excess + 1) // 2, excess // 2))


__all__ = [
    "FirFilter2d",
    "filter_after_transposed",
    "filter_before_strided",
    "fir_kernel",
    "upfirdn2d",
    "upsampling_filter",
]
