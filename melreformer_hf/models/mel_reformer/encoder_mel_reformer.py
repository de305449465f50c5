"""The encoder of an idea: a two-dimensional net over bands and columns with a transformer at its bottom.

What happens inside a column (an attack, a decay) looks alike in every band. Layers that mix all bands densely have to
learn it once per band; convolutions over bands and columns learn it once. They leave, for every column and band, the
coefficients of curves over the place inside the column, which draw any number of frames per column. All of its cost
belongs to the columns of the idea and none to the frames of the piece.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from melreformer_hf.models.mel_reformer.configuration_mel_reformer import MelReformerConfig
from melreformer_hf.models.mel_reformer.timing_mel_reformer import column_of, half_frames, interpolate_idea
from melreformer_hf.nn.attention import FeedForward, WindowedSelfAttention

STRETCH_SIZE = 64


class IdeaBlock2d(nn.Module):
    """Two 3 x 3 convolutions, scaled and shifted by the stretch between them, added to their input.

    Args:
        channels: of input and output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.modulation = nn.Linear(STRETCH_SIZE, 2 * channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, hidden: torch.Tensor, stretch: torch.Tensor) -> torch.Tensor:
        """(batch, channel, band, column) and (batch, STRETCH_SIZE) -> the shape of the former."""
        # (batch, 2 * channel, 1, 1) -> two of (batch, channel, 1, 1): the same for every band and column.
        scale, shift = self.modulation(stretch)[..., None, None].chunk(2, dim=1)
        branch = self.first(nn.functional.silu(hidden)) * (1 + scale) + shift
        return hidden + self.second(nn.functional.silu(branch))


class EncoderLayer(nn.Module):
    """Bidirectional attention within a window of columns, then a perceptron."""

    def __init__(self, config: MelReformerConfig) -> None:
        super().__init__()
        window = config.encoder_window
        self.attention = WindowedSelfAttention(config.hidden_size, config.num_attention_heads, window, window)
        self.feed_forward = FeedForward(config.hidden_size, config.intermediate_size)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(batch, column, hidden) -> the same shape."""
        hidden = hidden + self.attention(hidden)[0]
        return hidden + self.feed_forward(hidden)


class IdeaEncoder(nn.Module):
    """An idea to states per column and curve coefficients per column and band."""

    def __init__(self, config: MelReformerConfig) -> None:
        super().__init__()
        channels, bins = config.band_channels, config.num_mel_bins
        lowest = channels[-1] * -(-bins // 2 ** (len(channels) - 1))
        self.stretch = nn.Sequential(
            nn.Linear(2, STRETCH_SIZE), nn.SiLU(), nn.Linear(STRETCH_SIZE, STRETCH_SIZE), nn.SiLU()
        )
        self.stem = nn.Conv2d(1, channels[0], 5, padding=2)
        self.place = nn.Parameter(torch.empty(channels[0], bins, 1))
        self.down_blocks = nn.ModuleList(self._blocks(width, config.band_blocks) for width in channels)
        self.down = nn.ModuleList(
            nn.Conv2d(wide, narrow, 3, stride=(2, 1), padding=1)
            for wide, narrow in zip(channels, channels[1:], strict=False)
        )
        self.to_states = nn.Linear(lowest, config.hidden_size)
        self.stretch_to_states = nn.Linear(STRETCH_SIZE, config.hidden_size)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_encoder_layers))
        self.norm = nn.LayerNorm(config.hidden_size)
        self.from_states = nn.Linear(config.hidden_size, lowest)
        self.up = nn.ModuleList(
            nn.Conv2d(narrow, wide, 1) for wide, narrow in zip(channels, channels[1:], strict=False)
        )
        self.up_blocks = nn.ModuleList(self._blocks(width, config.band_blocks) for width in channels[:-1])
        self.head = nn.Conv2d(channels[0], config.num_bases, 1)
        self.frames_per_column = config.frames_per_column
        self.gradient_checkpointing = False

    @staticmethod
    def _blocks(width: int, count: int) -> nn.ModuleList:
        return nn.ModuleList(IdeaBlock2d(width) for _ in range(count))

    def _run(self, block: nn.Module, *arguments: torch.Tensor) -> torch.Tensor:
        if self.gradient_checkpointing and self.training:
            return self._gradient_checkpointing_func(block.__call__, *arguments)
        return block(*arguments)

    def _states(self, hidden: torch.Tensor, stretch: torch.Tensor) -> torch.Tensor:
        # (batch, channel, band, column) -> (batch, column, channel * band): a column becomes a token.
        columns = self.to_states(hidden.permute(0, 3, 1, 2).flatten(2)) + self.stretch_to_states(stretch)[:, None]
        for layer in self.layers:
            columns = self._run(layer, columns)
        return self.norm(columns)

    def forward(self, idea: torch.Tensor, num_frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode once per piece.

        Args:
            idea: (batch, mel, column), normalized.
            num_frames: (batch,).

        Returns:
            states (batch, column, hidden) and coefficients (batch, column, mel * num_bases).
        """
        stretch = stretch_of(num_frames, idea.shape[-1], self.frames_per_column).to(idea.dtype)
        # The square lets the small network bend at the ends of the range.
        stretch = self.stretch(torch.stack([stretch, stretch.square()], dim=-1))
        # Channels last is the layout that convolutions on CPUs are fast in. `place` tells them their band.
        hidden = self.stem(idea[:, None].contiguous(memory_format=torch.channels_last)) + self.place
        skips = []
        for level, blocks in enumerate(self.down_blocks):
            if level:
                skips.append(hidden)
                hidden = self.down[level - 1](hidden)
            for block in blocks:
                hidden = self._run(block, hidden, stretch)
        states = self._states(hidden, stretch)
        # (batch, column, channel * band) -> (batch, channel, band, column), back into the picture.
        back = self.from_states(states).unflatten(2, (hidden.shape[1], hidden.shape[2])).permute(0, 2, 3, 1)
        hidden = hidden + back
        for level in reversed(range(len(skips))):
            # Twice the bands, cut where halving had rounded an odd number up.
            grown = self.up[level](hidden).repeat_interleave(2, dim=2)[:, :, : skips[level].shape[2]]
            hidden = skips[level] + grown
            for block in self.up_blocks[level]:
                hidden = self._run(block, hidden, stretch)
        coefficients = self.head(nn.functional.silu(hidden))
        return states, coefficients.permute(0, 3, 2, 1).flatten(2)


class ColumnCurves(nn.Module):
    """Curves over the place inside a column; their weighted sum corrects the re-interpolated idea.

    Args:
        num_bases: curves.
        frames_per_column: as in `MelReformerConfig`.
        size: hidden width of the network that draws them.
        harmonics: sines and cosines of the place that it is given.
    """

    def __init__(
        self, num_bases: int, frames_per_column: tuple[float, float], size: int = 64, harmonics: int = 8
    ) -> None:
        super().__init__()
        self.frames_per_column = frames_per_column
        self.num_bases, self.harmonics = num_bases, harmonics
        self.curves = nn.Sequential(
            nn.Linear(3 + 2 * harmonics, size), nn.SiLU(), nn.Linear(size, size), nn.SiLU(), nn.Linear(size, num_bases)
        )

    def forward(
        self,
        idea: torch.Tensor,
        coefficients: torch.Tensor,
        start: torch.Tensor,
        length: int,
        num_frames: torch.Tensor,
    ) -> torch.Tensor:
        """Draw a stretch of the piece.

        Args:
            idea: (batch, mel, column), normalized.
            coefficients: (batch, column, mel * num_bases).
            start: (batch,) first frame, may be negative.
            length: frames.
            num_frames: (batch,) length of each piece.

        Returns:
            (batch, mel, length).
        """
        bins, columns = idea.shape[1:]
        # Counted from the left edge of column 0, so that the whole part names the column.
        place = (column_of(half_frames(start, length), num_frames, columns) + 0.5).clamp(0, columns)
        column = place.floor().clamp(max=columns - 1)
        inside = (place - column)[..., None]
        stretch = stretch_of(num_frames, columns, self.frames_per_column)[:, None, None].expand(-1, length, 1)
        waves = inside * math.pi * torch.arange(1, self.harmonics + 1, device=idea.device)
        described = torch.cat([inside, stretch, stretch.square(), waves.sin(), waves.cos()], dim=-1)
        curves = self.curves(described.to(coefficients.dtype))
        # Each frame takes the coefficients of its column: (batch, frame, mel * base).
        index = column.long()[..., None].expand(-1, -1, coefficients.shape[-1])
        drawn = coefficients.gather(1, index).unflatten(2, (bins, self.num_bases))
        change = torch.einsum("btmk,btk->bmt", drawn, curves)
        return interpolate_idea(idea, start, length, num_frames) + change


def stretch_of(num_frames: torch.Tensor, num_columns: int, limits: tuple[float, float]) -> torch.Tensor:
    """Frames per column, within the limits, on a logarithmic scale: 0 at 8, 1 at 64; (batch,) float32."""
    return ((num_frames.float() / num_columns).clamp(*limits).log2() - 3.0) / 3.0


__all__ = ["ColumnCurves", "EncoderLayer", "IdeaEncoder", "IdeaBlock2d", "stretch_of"]
