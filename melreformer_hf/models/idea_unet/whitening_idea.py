"""Whitened ideas: log-mels as numbers that are nearly independent, with mean zero and variance one.

Diffusion begins at white noise. Of an idea as it is, a few sums of thousands of cells (its loudness, its outline) have a
hundred times the spread of the noise: they are decided in the noisiest hundredth of the schedule, which few steps leap
over. Whitened, noise is already an idea with the loudness, the spectrum and the pace of music, by linear statistics; what
the network adds is what a Gaussian has not, and few steps suffice.

The covariance is taken as that of a stationary texture: principal axes of the bands (one basis for all), a cosine transform
along time, and a gain for each axis and frequency, for which a table over logarithmic durations is interpolated: a column
of a minute's idea sums up more than one of a second's.
"""

from __future__ import annotations

import math

import torch
from torch import nn

# Gains below this many nats are raised to it: numbers that never change need no dividing by nothing.
_SMALLEST_GAIN = 0.02
# A knot with few ideas near it leans on the mean of all, which counts as so many.
PRIOR_COUNT = 16.0


def cosine_basis(size: int) -> torch.Tensor:
    """Orthonormal cosine transform (DCT-II), (frequency, place)."""
    angles = torch.arange(size)[:, None] * (torch.arange(size) + 0.5) * (math.pi / size)
    basis = angles.cos() * math.sqrt(2 / size)
    basis[0] /= math.sqrt(2)
    return basis


def smoothed(power: torch.Tensor) -> torch.Tensor:
    """Mean of (..., frequency) over an eighth of the frequency to either side; the lowest eight stay."""
    size = power.shape[-1]
    place = torch.arange(size)
    low, high = place - place // 8, (place + place // 8).clamp(max=size - 1) + 1
    sums = torch.nn.functional.pad(power.double().cumsum(-1), (1, 0))
    return ((sums[..., high] - sums[..., low]) / (high - low)).float()


class IdeaWhitening(nn.Module):
    """The map and its inverse; both are linear for a given duration.

    Args:
        num_mel_bins: bands.
        num_columns: columns of an idea.
        num_knots: durations that have statistics of their own, at least 2.
    """

    def __init__(self, num_mel_bins: int, num_columns: int, num_knots: int) -> None:
        super().__init__()
        self.num_knots = num_knots
        self.register_buffer("basis", torch.eye(num_mel_bins))  # (band, axis)
        self.register_buffer("mean", torch.zeros(num_knots, num_mel_bins))
        self.register_buffer("gain", torch.ones(num_knots, num_mel_bins, num_columns))  # (knot, axis, frequency)
        self.register_buffer("cosine", cosine_basis(num_columns), persistent=False)

    def hats(self, place: torch.Tensor) -> torch.Tensor:
        """(batch,) places in 0..1, NaN where unknown -> (batch, knot) weights of linear interpolation."""
        scaled = torch.nan_to_num(place.float(), nan=0.5).clamp(0, 1) * (self.num_knots - 1)
        return (1 - (scaled[:, None] - torch.arange(self.num_knots, device=place.device)).abs()).clamp(min=0)

    def _tables(self, place: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Means (batch, band, 1) and gains (batch, axis, frequency)."""
        hats = self.hats(place)
        gain = (hats @ self.gain.float().flatten(1)).unflatten(1, self.gain.shape[1:])
        return (hats @ self.mean.float())[..., None], gain

    def whiten(self, idea: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        """(batch, mel, column) log-mels -> (batch, axis, column)."""
        mean, gain = self._tables(place)
        axes = self.basis.float().T @ (idea.float() - mean)
        # Scaled by frequency and turned back into columns: onsets stay where they are.
        return (axes @ self.cosine.float().T / gain) @ self.cosine.float()

    def color(self, sample: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        """The inverse of `whiten`."""
        mean, gain = self._tables(place)
        axes = (sample.float() @ self.cosine.float().T * gain) @ self.cosine.float()
        return self.basis.float() @ axes + mean

    def weigh_error(self, error: torch.Tensor, place: torch.Tensor, power: float) -> torch.Tensor:
        """(batch, axis, column) weighed by the gains to a power, of mean square one; by axis and frequency, not column."""
        scale = self._tables(place.to(error.device))[1] ** power
        scale = scale / scale.square().mean((1, 2), keepdim=True).sqrt()
        return error.float() @ self.cosine.float().T * scale

    @torch.no_grad()
    def fit(self, ideas: torch.Tensor, place: torch.Tensor) -> None:
        """Take the statistics of (idea, mel, column) log-mels at durations `place`, (idea,) in 0..1."""
        hats = self.hats(place).double()
        counts = hats.sum(0)[:, None]
        bands = ideas.double().mean(-1)  # (idea, band)
        self.mean.copy_((hats.T @ bands + PRIOR_COUNT * bands.mean(0)) / (counts + PRIOR_COUNT))
        self.gain.fill_(1.0)
        self.basis.copy_(torch.eye(len(self.basis)))
        mean, _ = self._tables(place)
        covariance = torch.zeros(len(self.basis), len(self.basis), dtype=torch.float64)
        for part, center in zip(ideas.split(64), mean.split(64), strict=True):
            flat = (part.float() - center).transpose(0, 1).flatten(1).double()  # (band, idea * column)
            covariance += flat @ flat.T
        axes = torch.linalg.eigh(covariance).eigenvectors.flip(1)  # the axis of most variance first
        # An eigenvector's sign is the library's choice.
        self.basis.copy_(axes * torch.sign(axes.gather(0, axes.abs().argmax(0, keepdim=True))))
        power = torch.zeros(self.gain.shape, dtype=torch.float64)
        for part, center, weight in zip(ideas.split(64), mean.split(64), hats.split(64), strict=True):
            axes = self.basis.T @ (part.float() - center)
            squares = (axes @ self.cosine.T).double().square().flatten(1)
            power += (weight.T @ squares).view_as(power)
        pooled = power.sum(0) / len(ideas)
        power = (power + PRIOR_COUNT * pooled) / (counts[..., None] + PRIOR_COUNT)
        self.gain.copy_(smoothed(power).sqrt().clamp(min=_SMALLEST_GAIN))


__all__ = ["PRIOR_COUNT", "IdeaWhitening", "cosine_basis", "smoothed"]
