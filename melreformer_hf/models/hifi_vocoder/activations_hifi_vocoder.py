"""Periodic activations of the vocoders."""

from __future__ import annotations

import torch
from torch import nn

_EPSILON = 1e-8


def low_pass_taps(num_taps: int, cutoff: float) -> torch.Tensor:
    """Windowless ideal low-pass filter with unit gain at zero frequency.

    Args:
        num_taps: length of the filter.
        cutoff: in cycles per sample, at most 0.5.

    Returns:
        (num_taps,) float32.
    """
    if num_taps < 1 or not 0 < cutoff <= 0.5:
        raise ValueError(f"low_pass_taps needs num_taps >= 1 and 0 < cutoff <= 0.5, got {num_taps} and {cutoff}.")
    time = torch.arange(num_taps, dtype=torch.float64, device="cpu") - (num_taps - 1) / 2
    taps = torch.special.sinc(2 * cutoff * time)
    return (taps / taps.sum()).float()


def snake(hidden: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """`x + sin^2(alpha x) / (alpha + 1e-8)`, one alpha per channel: (batch, channel, sample) of the same shape.

    Source: Liu, Hartwig, Ueda, Neural networks fail to learn periodic functions (arXiv 2006.08195).
    """
    alpha = alpha[:, None]
    return hidden + (alpha * hidden).sin().square() / (alpha + _EPSILON)


class UpDownSnake(nn.Module):
    """Low-pass filter, snake, low-pass filter; every channel learns its filters and its alpha.

    Source: TariqAHassan/HiFiHybrid, whose name for it promises the resampling of BigVGAN; none takes place.

    Args:
        num_channels: channels.
        num_taps: length of both filters; an even filter pads one sample more on the right.
        cutoff: initial cutoff in cycles per sample.
    """

    def __init__(self, num_channels: int, num_taps: int = 12, cutoff: float = 0.125) -> None:
        super().__init__()
        self.num_taps = num_taps
        self.cutoff = cutoff
        # While `from_pretrained` builds a model, the default type is the checkpoint's and the default device holds nothing.
        taps = low_pass_taps(num_taps, cutoff).to(torch.empty(())).repeat(num_channels, 1, 1)
        self.alpha = nn.Parameter(torch.randn(num_channels))
        self.filter_before = nn.Parameter(taps.clone())
        self.filter_after = nn.Parameter(taps.clone())

    @property
    def reach(self) -> tuple[int, int]:
        """Samples (before, after) that an output sample depends on."""
        before = (self.num_taps - 1) // 2
        return 2 * before, 2 * (self.num_taps - 1 - before)

    def _filter(self, hidden: torch.Tensor, taps: torch.Tensor) -> torch.Tensor:
        before = (self.num_taps - 1) // 2
        padded = nn.functional.pad(hidden, (before, self.num_taps - 1 - before))
        return nn.functional.conv1d(padded, taps, groups=hidden.shape[1])

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(batch, channel, sample) -> the same shape."""
        hidden = self._filter(hidden, self.filter_before)
        return self._filter(snake(hidden, self.alpha), self.filter_after)


__all__ = ["UpDownSnake", "low_pass_taps", "snake"]
