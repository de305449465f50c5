"""Blocks of the ear: a stem over frequency and time, and layers over time that look little ahead."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import gelu, pad
from transformers.modeling_layers import GradientCheckpointingLayer

from melreformer_hf.models.note_ear.configuration_note_ear import NoteEarConfig

_BAND_TAPS = (5, 3)  # of the stem's convolutions


class EarStem(nn.Module):
    """Two convolutions over bands and time that share what a partial looks like, then a linear map of all that is left.

    The first one strides over `fold_size` frames: a step sees its own frames, and `reach` frames to either side.
    """

    def __init__(self, config: NoteEarConfig) -> None:
        super().__init__()
        first, second = config.stem_channels
        fold, bands = config.fold_size, -(-config.num_mel_bins // 2)
        # A frame beyond the step's own to each side, then a step.
        self.reach = fold + 1
        self.fold = nn.Conv2d(1, first, (_BAND_TAPS[0], fold + 2), (2, fold), (_BAND_TAPS[0] // 2, 1))
        self.mix = nn.Conv2d(first, second, (_BAND_TAPS[1], 3), (2, 1), (_BAND_TAPS[1] // 2, 1))
        self.proj = nn.Linear(second * -(-bands // 2), config.hidden_size)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(batch, mel, frame) -> (batch, hidden, step)."""
        hidden = gelu(self.fold(features.unsqueeze(1)))  # (batch, channel, band, step)
        hidden = gelu(self.mix(hidden))
        return self.proj(hidden.flatten(1, 2).transpose(1, 2)).transpose(1, 2)


class EarLayer(GradientCheckpointingLayer):
    """Depthwise convolution over time, mostly into the past, then a perceptron over channels, added to the input.

    `ConvNeXtBlock` (Liu et al., arXiv 2201.03545) with its taps moved, so that a stream waits for few steps.

    Args:
        config: widths and taps.
        dilation: steps between taps.
        look_ahead: taps in the future.
    """

    def __init__(self, config: NoteEarConfig, dilation: int, look_ahead: int) -> None:
        super().__init__()
        self.reach = (dilation * (config.kernel_size - 1 - look_ahead), dilation * look_ahead)
        width = config.hidden_size
        self.depthwise = nn.Conv1d(width, width, config.kernel_size, dilation=dilation, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up_proj = nn.Linear(width, config.intermediate_size)
        self.down_proj = nn.Linear(config.intermediate_size, width)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(batch, hidden, step) -> the same shape."""
        branch = self.norm(self.depthwise(pad(hidden, self.reach)).transpose(1, 2))
        return hidden + self.down_proj(gelu(self.up_proj(branch))).transpose(1, 2)


__all__ = ["EarLayer", "EarStem"]
