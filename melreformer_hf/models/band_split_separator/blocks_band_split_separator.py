"""Layers of the band-split separator, on tensors (batch, frame, band, hidden)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.functional import gelu, linear, pad

from melreformer_hf.nn.conv import Runner, run_whole

_SMALLEST = 1e-8


class FrameConv(nn.Linear):
    """Convolution over frames whose taps all bands share; beyond the ends of a recording lie zeros.

    Args:
        in_size: values of a band at a frame.
        out_size: values of the output.
        kernel_size: taps.
        dilation: frames between taps.
        causal: whether the last tap is the frame itself; otherwise the middle one is.
    """

    def __init__(self, in_size: int, out_size: int, kernel_size: int, dilation: int, causal: bool) -> None:
        super().__init__(kernel_size * in_size, out_size)
        total = dilation * (kernel_size - 1)
        self.kernel_size, self.dilation = kernel_size, dilation
        self.reach = (total, 0) if causal else (total // 2, total // 2)

    def _convolve(self, padded: torch.Tensor) -> torch.Tensor:
        frames = padded.shape[1] - sum(self.reach)
        # Taps side by side and one product, which keeps the hidden axis last: no transposition.
        taps = [padded[:, tap * self.dilation : tap * self.dilation + frames] for tap in range(self.kernel_size)]
        return linear(torch.cat(taps, dim=-1), self.weight, self.bias)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(batch, frame, band, in_size) -> (batch, frame, band, out_size)."""
        return self._convolve(pad(hidden, (0, 0, 0, 0, *self.reach)))

    def step(self, hidden: torch.Tensor, memory: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """One chunk of a stream, of a causal convolution.

        Args:
            hidden: (batch, frame, band, in_size).
            memory: what the step before returned; `None` begins a stream.

        Returns:
            (batch, frame, band, out_size), and the memory for the next step: the last frames of the input.
        """
        before = self.reach[0]
        if memory is None:
            memory = hidden.new_zeros(hidden.shape[0], before, *hidden.shape[2:])
        held = torch.cat([memory, hidden], dim=1)
        return self._convolve(held), held[:, held.shape[1] - before :].clone()


class ResidualLinear(nn.Linear):
    """The last product of a residual layer, which begins small: `_init_weights` knows it by its class."""


class MaskLinear(nn.Linear):
    """The last product before a mask, whose first mask is the same everywhere: `_init_weights` knows it by its class."""


class SeparatorLayer(nn.Module):
    """A residual layer over time, shared by all bands, and one across all bands of a frame.

    Args:
        num_bands: bands.
        hidden_size: values of a band.
        intermediate_size: width of the layer over time.
        band_intermediate_size: width of the layer across bands.
        kernel_size: taps over time.
        dilation: frames between taps.
        causal: whether no tap lies in the future.
    """

    def __init__(
        self,
        num_bands: int,
        hidden_size: int,
        intermediate_size: int,
        band_intermediate_size: int,
        kernel_size: int,
        dilation: int,
        causal: bool,
    ) -> None:
        super().__init__()
        self.time_norm = nn.LayerNorm(hidden_size)
        self.conv = FrameConv(hidden_size, intermediate_size, kernel_size, dilation, causal)
        self.time_out = ResidualLinear(intermediate_size, hidden_size)
        self.band_norm = nn.LayerNorm(hidden_size)
        self.band_in = nn.Linear(num_bands * hidden_size, band_intermediate_size)
        self.band_out = ResidualLinear(band_intermediate_size, num_bands * hidden_size)

    def forward(self, hidden: torch.Tensor, run: Runner = run_whole) -> torch.Tensor:
        """(batch, frame, band, hidden) -> the same shape; `run` as in `nn.conv`."""
        hidden = hidden + self.time_out(gelu(run(self.conv, self.time_norm(hidden))))
        # All bands of a frame side by side: a voice is one thing in all of them.
        across = self.band_out(gelu(self.band_in(self.band_norm(hidden).flatten(2))))
        return hidden + across.view_as(hidden)


class BandSplit(nn.Module):
    """A linear layer of its own for each band, from its bins to its hidden values.

    Args:
        edges: first bin of each band, and one past the last.
        num_features: values of a bin.
        hidden_size: values of a band.
    """

    def __init__(self, edges: Sequence[int], num_features: int, hidden_size: int) -> None:
        super().__init__()
        self.edges = tuple(zip(edges[:-1], edges[1:], strict=True))
        self.bands = nn.ModuleList(nn.Linear(num_features * (stop - start), hidden_size) for start, stop in self.edges)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(batch, frame, feature, bin) -> (batch, frame, band, hidden)."""
        parts = (features[..., start:stop].flatten(2) for start, stop in self.edges)
        return torch.stack([band(part) for band, part in zip(self.bands, parts, strict=True)], dim=2)


class BandMerge(nn.Module):
    """What a mask is made of, from the hidden values of each band.

    Args:
        edges: as of `BandSplit`.
        num_channels: audio channels.
        hidden_size: values of a band.
    """

    def __init__(self, edges: Sequence[int], num_channels: int, hidden_size: int) -> None:
        super().__init__()
        self.num_channels = num_channels
        self.norm = nn.LayerNorm(hidden_size)
        self.expand = nn.Linear(hidden_size, 2 * hidden_size)
        self.bands = nn.ModuleList(
            MaskLinear(2 * hidden_size, 2 * num_channels * (stop - start))
            for start, stop in zip(edges[:-1], edges[1:], strict=True)
        )

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(batch, frame, band, hidden) -> (batch, frame, 2, channel, bin), a real and an imaginary part, unbounded."""
        hidden = gelu(self.expand(self.norm(hidden)))
        parts = [
            band(hidden[:, :, index]).unflatten(-1, (2, self.num_channels, -1))
            for index, band in enumerate(self.bands)
        ]
        return torch.cat(parts, dim=-1)


def compressed_features(spectrum: torch.Tensor, exponent: float) -> torch.Tensor:
    """What the network reads of a spectrum: magnitude ** exponent, with and without the phase.

    Args:
        spectrum: (batch, channel, frame, bin) complex.
        exponent: of the magnitudes.

    Returns:
        (batch, frame, 3 * channel, bin) real.
    """
    real, imaginary = spectrum.real, spectrum.imag
    square = real.square() + imaginary.square() + _SMALLEST
    scale = square ** ((exponent - 1) / 2)
    features = torch.cat([square ** (exponent / 2), real * scale, imaginary * scale], dim=1)
    return features.transpose(1, 2)


def bounded_mask(parts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A complex mask within the unit circle: the direction of what is given, and tanh of its length.

    Source: Hu et al., DCCRN (arXiv 2008.00264), the masking that the paper calls E.

    Args:
        parts: (batch, frame, 2, channel, bin) real.

    Returns:
        real and imaginary part, (batch, channel, frame, bin).
    """
    real, imaginary = parts.transpose(1, 3).unbind(2)  # (batch, channel, 2, frame, bin)
    length = (real.square() + imaginary.square() + _SMALLEST).sqrt()
    scale = length.tanh() / length
    return real * scale, imaginary * scale


__all__ = [
    "BandMerge",
    "BandSplit",
    "FrameConv",
    "MaskLinear",
    "ResidualLinear",
    "SeparatorLayer",
    "bounded_mask",
    "compressed_features",
]
