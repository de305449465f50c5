"""What an idea model is told besides the time step."""

from __future__ import annotations

import math

import torch
from torch import nn


class DurationEmbedding(nn.Module):
    """Fourier features of the normalized logarithmic duration, then a perceptron."""

    def __init__(self, embedding_size: int, num_frequencies: int = 8) -> None:
        super().__init__()
        self.num_frequencies = num_frequencies
        self.up = nn.Linear(1 + 2 * num_frequencies, embedding_size)
        self.activation = nn.SiLU()
        self.down = nn.Linear(embedding_size, embedding_size)
        self.unknown = nn.Parameter(torch.zeros(embedding_size))

    def forward(self, duration: torch.Tensor) -> torch.Tensor:
        """(batch,) normalized durations, NaN where unknown -> (batch, embedding)."""
        known = duration.isfinite()
        # Masked before the perceptron: the gradient of NaN times zero would be NaN.
        value = torch.where(known, duration, torch.zeros_like(duration))[:, None]
        # From one period over 16 standard deviations down to an eighth of one: fine and coarse steps.
        octaves = 2.0 ** torch.arange(self.num_frequencies, device=value.device, dtype=value.dtype)
        angles = value * octaves * (math.pi / 8)
        features = torch.cat([value, angles.sin(), angles.cos()], dim=-1).to(self.up.weight.dtype)
        embedded = self.down(self.activation(self.up(features)))
        return torch.where(known[:, None], embedded, self.unknown.to(embedded.dtype))


__all__ = ["DurationEmbedding"]
