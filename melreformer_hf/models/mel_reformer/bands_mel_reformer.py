"""Learned interpolation between the columns of an idea, one function for all mel bands.

What happens between two columns (an attack, a decay) looks alike in every band. Layers that mix all bands densely have
to learn it once per band; this one learns it once: for each band and frame it sees the columns around, a few
neighbouring bands and the place between the columns, and corrects the linear interpolation.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from melreformer_hf.models.mel_reformer.timing_mel_reformer import column_of


class BandInterpolator(nn.Module):
    """Correction of the re-interpolated idea, frame by frame.

    Args:
        size: hidden width.
        num_bands: neighbouring bands seen, odd, the band itself in the middle.
        before: columns seen before the place of a frame.
        after: columns seen after it.
    """

    def __init__(self, size: int, num_bands: int = 5, before: int = 3, after: int = 4) -> None:
        super().__init__()
        self.before, self.after, self.num_bands = before, after, num_bands
        self.columns = nn.Conv2d(1, size, (num_bands, before + after))
        self.described = nn.Linear(7, size)
        self.hidden = nn.Linear(size, size)
        self.head = nn.Linear(size, 1)

    def describe(self, idea: torch.Tensor) -> torch.Tensor:
        """What each place between columns looks like: (batch, mel, column) -> (batch, column, mel, size)."""
        rim = self.num_bands // 2
        padded = nn.functional.pad(idea[:, None], (self.before, self.after, rim, rim), mode="replicate")
        return self.columns(padded).permute(0, 3, 2, 1)

    def forward(
        self, described: torch.Tensor, base: torch.Tensor, start: torch.Tensor, num_frames: torch.Tensor
    ) -> torch.Tensor:
        """Correct a stretch of the re-interpolated idea.

        Args:
            described: of `describe`, one more place than columns: the one before the first centre.
            base: (batch, mel, frame) normalised linear interpolation.
            start: (batch,) first frame of the stretch.
            num_frames: (batch,) length of each piece.

        Returns:
            (batch, mel, frame), to be added to `base`.
        """
        batch, bins, length = base.shape
        num_columns = described.shape[1] - 1
        frames = start[:, None] + torch.arange(length, device=base.device) + 0.5
        place = column_of(frames, num_frames, num_columns).clamp(-1, num_columns - 0.5)
        left = place.floor()
        around = described[torch.arange(batch, device=base.device)[:, None], (left + 1).long()]
        share, stretch = place - left, torch.log2(num_frames.float() / num_columns)[:, None].expand(-1, length) / 4
        clock = torch.stack([share, (math.pi * share).sin(), (math.pi * share).cos(), stretch, stretch.square()], -1)
        band = torch.linspace(-1, 1, bins, device=base.device).expand(batch, length, bins)
        features = torch.cat(
            [base.transpose(1, 2)[..., None], band[..., None], clock[:, :, None].expand(-1, -1, bins, -1)], dim=-1
        )
        hidden = nn.functional.gelu(around + self.described(features.to(base.dtype)))
        hidden = nn.functional.gelu(self.hidden(hidden))
        return self.head(hidden)[..., 0].transpose(1, 2)


__all__ = ["BandInterpolator"]
