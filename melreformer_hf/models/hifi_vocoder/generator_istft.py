"""The fast generator: ConvNeXt blocks at the frame rate and an inverse STFT (Vocos, arXiv 2306.00814).

Deviations from Vocos: magnitudes are predicted as a change of those that the mel itself implies (pseudo-inverse of the
filter bank); the phase is an unnormalised (cosine, sine) pair; optional unrolled Griffin-Lim projections make the
spectrum consistent inside the network, so that the losses see what is heard.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from melreformer_hf.audio.mel import MelConfig, mel_filter_bank
from melreformer_hf.audio.stft import (
    Transform,
    extended_istft,
    extended_stft,
    magnitude_from_log_mel,
    trim,
)
from melreformer_hf.nn.convnext import ConvNeXtBlock

_SMALLEST_MAGNITUDE = 1e-5
_SMALLEST_SQUARE = 1e-10


def mel_affine(config: MelConfig) -> tuple[float, float]:
    """(scale, shift) that carry the contract's range, silence to a full-scale sine, to -1..1."""
    window = Transform.of(config).window(torch.float64)
    peak = (window.sum().item() / 2) ** config.power * mel_filter_bank(config).max().item()
    peak = max(peak, math.e * config.log_floor)
    top = (math.log(peak) if config.log_base == "e" else math.log10(peak)) * config.log_multiplier + config.log_offset
    if config.clip_max is not None:
        top = min(top, config.clip_max)
    scale = 2 / (top - config.floor_value)
    return scale, -1 - scale * config.floor_value


class IstftGenerator(nn.Module):
    """Log-mel to waveform at one network step per frame.

    Args:
        mel_config: hop-aligned contract of the input.
        hidden_size: channels.
        intermediate_size: width of the blocks' perceptrons.
        num_hidden_layers: number of blocks.
        kernel_size: odd kernel of stem and blocks.
        refine_steps: consistency projections after the head.
    """

    def __init__(
        self,
        mel_config: MelConfig,
        hidden_size: int,
        intermediate_size: int,
        num_hidden_layers: int,
        kernel_size: int,
        refine_steps: int,
    ) -> None:
        super().__init__()
        self.mel_config = mel_config
        self.transform = Transform.of(mel_config)
        self.refine_steps = refine_steps
        self.gradient_checkpointing = False
        self.scale, self.shift = mel_affine(mel_config)
        self.loudest = math.log(mel_config.win_length)
        self.stem = nn.Conv1d(mel_config.num_mel_bins, hidden_size, kernel_size, padding=kernel_size // 2)
        self.stem_norm = nn.LayerNorm(hidden_size)
        self.blocks = nn.ModuleList(
            ConvNeXtBlock(hidden_size, intermediate_size, kernel_size) for _ in range(num_hidden_layers)
        )
        self.norm = nn.LayerNorm(hidden_size)
        self.head = nn.Linear(hidden_size, 3 * self.transform.num_bins)

    @property
    def receptive_field_frames(self) -> tuple[int, int]:
        """Frames (before, after) that the samples of a frame depend on."""
        network = self.stem.kernel_size[0] // 2 + sum(block.reach for block in self.blocks)
        network += self.refine_steps * self.transform.overlap_reach
        before, after = self.transform.output_reach
        return network + before, network + after

    def _hidden(self, input_features: torch.Tensor) -> torch.Tensor:
        hidden = self.stem(input_features * self.scale + self.shift)
        hidden = self.stem_norm(hidden.transpose(1, 2)).transpose(1, 2)
        for block in self.blocks:
            if self.gradient_checkpointing and self.training:
                hidden = checkpoint(block, hidden, use_reentrant=False)
            else:
                hidden = block(hidden)
        return self.head(self.norm(hidden.transpose(1, 2)))

    def _synthesize(self, log_mel: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
        delta, cosine, sine = head.chunk(3, dim=-1)
        prior = magnitude_from_log_mel(log_mel, self.mel_config, _SMALLEST_MAGNITUDE)
        magnitude = (prior.log() + delta).clamp(max=self.loudest).exp()
        gain = magnitude * (cosine.square() + sine.square() + _SMALLEST_SQUARE).rsqrt()
        spectrum = torch.complex(cosine * gain, sine * gain)
        for _ in range(self.refine_steps):
            rebuilt = extended_stft(extended_istft(spectrum, self.transform), self.transform)
            square = torch.view_as_real(rebuilt).square().sum(-1)
            spectrum = rebuilt * (magnitude * (square + _SMALLEST_SQUARE).rsqrt())
        return trim(extended_istft(spectrum, self.transform), self.transform)

    def forward(self, input_features: torch.Tensor) -> torch.Tensor:
        """(batch, mel, frame) -> (batch, frame * hop)."""
        head = self._hidden(input_features)
        with torch.autocast(input_features.device.type, enabled=False):  # transforms lose the phase in half precision
            return self._synthesize(input_features.float(), head.float()).to(input_features.dtype)


__all__ = ["IstftGenerator", "mel_affine"]
