"""Encoder and decoder of the codec: causal convolutions on whole waveforms or, chunk by chunk, on streams."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from melreformer_hf.models.soundstream.configuration_soundstream import SoundStreamConfig
from melreformer_hf.models.soundstream.multires_soundstream import MultiresConv1d, WaveletUpsampler
from melreformer_hf.nn.conv import CausalConv1d, CausalConvTranspose1d, Runner, run_whole


def _activation(config: SoundStreamConfig) -> nn.Module:
    return nn.ELU() if config.activation == "elu" else nn.LeakyReLU(config.activation_slope)


class ResidualUnit(nn.Module):
    """`x + pointwise(activation(dilated(x)))`.

    Args:
        config: of the codec.
        channels: of input and output.
        dilation: of the first convolution.
    """

    def __init__(self, config: SoundStreamConfig, channels: int, dilation: int) -> None:
        super().__init__()
        self.gain = CausalConv1d(channels, channels, 1, groups=channels) if config.depthwise else None
        self.conv1 = CausalConv1d(channels, channels, config.kernel_size, dilation=dilation)
        self.activation = _activation(config)
        self.conv2 = CausalConv1d(channels, channels, 1)

    def forward(self, hidden: torch.Tensor, run: Runner = run_whole) -> torch.Tensor:
        """(batch, channels, sample) -> the same shape."""
        # A gain per channel stands in for the original's depthwise convolution of one tap.
        inner = hidden if self.gain is None else run(self.gain, hidden)
        return hidden + run(self.conv2, self.activation(run(self.conv1, inner)))


class UnitStack(nn.Module):
    """Residual units of growing dilation, an activation after each.

    Args:
        config: of the codec.
        channels: of input and output.
    """

    def __init__(self, config: SoundStreamConfig, channels: int) -> None:
        super().__init__()
        # 1, 3, 9 by default: the three units of a block see 1 + 6 (1 + 3 + 9) = 79 samples of their rate.
        dilations = [config.dilation_base**number for number in range(config.num_residual_units)]
        self.units = nn.ModuleList(ResidualUnit(config, channels, dilation) for dilation in dilations)
        self.activation = _activation(config)

    def forward(self, hidden: torch.Tensor, run: Runner = run_whole) -> torch.Tensor:
        """(batch, channels, sample) -> the same shape."""
        for unit in self.units:
            hidden = self.activation(unit(hidden, run))
        return hidden


class EncoderBlock(GradientCheckpointingLayer):
    """Residual units, then a convolution with a stride and twice as many taps.

    Args:
        config: of the codec.
        in_channels: channels of the input.
        out_channels: channels of the output.
        stride: of the downsampling.
    """

    def __init__(self, config: SoundStreamConfig, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stack = UnitStack(config, in_channels)
        # Twice as many taps as the stride: every sample is seen by two frames, so that no frame edge is heard.
        self.downsample = CausalConv1d(in_channels, out_channels, 2 * stride, stride=stride)
        self.activation = _activation(config)

    def forward(self, hidden: torch.Tensor, run: Runner = run_whole) -> torch.Tensor:
        """(batch, in_channels, sample) -> (batch, out_channels, ceil(sample / stride))."""
        return self.activation(run(self.downsample, self.stack(hidden, run)))


class DecoderBlock(GradientCheckpointingLayer):
    """Upsampling, then residual units.

    Args:
        config: of the codec.
        in_channels: channels of the input.
        out_channels: channels of the output.
        stride: of the upsampling.
        wavelets: whether wavelets do it, else a transposed convolution with `2 * stride` taps.
    """

    def __init__(
        self, config: SoundStreamConfig, in_channels: int, out_channels: int, stride: int, wavelets: bool
    ) -> None:
        super().__init__()
        self.wavelets = wavelets
        if wavelets:
            self.upsample = WaveletUpsampler(in_channels, out_channels, stride)
        else:
            self.upsample = CausalConvTranspose1d(in_channels, out_channels, 2 * stride, stride=stride)
        self.activation = _activation(config)
        self.stack = UnitStack(config, out_channels)

    def forward(self, hidden: torch.Tensor, run: Runner = run_whole) -> torch.Tensor:
        """(batch, in_channels, frame) -> (batch, out_channels, frame * stride)."""
        # The wavelet upsampler runs its own layers, so that in a stream each of them keeps its memory.
        hidden = self.upsample(hidden, run) if self.wavelets else run(self.upsample, hidden)
        return self.stack(self.activation(hidden), run)


class MultiresPath(nn.Module):
    """From the waveform straight to the latents: multiresolution convolution, one weighted mean per frame, GELU.

    Args:
        config: of the codec.
    """

    def __init__(self, config: SoundStreamConfig) -> None:
        super().__init__()
        channels, hop = config.base_channels, config.hop_length
        self.expand = CausalConv1d(config.audio_channels, channels, 1)
        self.multires = MultiresConv1d(channels, config.multires_kernel_size, depth=config.multires_depth)
        # One learned mean of `hop` samples per channel and frame, without overlap: it needs no memory in a stream.
        self.pool = CausalConv1d(channels, channels, hop, stride=hop, groups=channels)
        self.project = CausalConv1d(channels, config.hidden_size, 1)
        self.activation = nn.GELU()

    def forward(self, waveform: torch.Tensor, run: Runner = run_whole) -> torch.Tensor:
        """(batch, audio_channels, sample) -> (batch, hidden_size, frame)."""
        hidden = run(self.pool, run(self.multires, run(self.expand, waveform)))
        return self.activation(run(self.project, hidden))


class SoundStreamEncoder(nn.Module):
    """Waveform to latents.

    Args:
        config: of the codec.
    """

    def __init__(self, config: SoundStreamConfig) -> None:
        super().__init__()
        widths = config.channels
        self.input_conv = CausalConv1d(config.audio_channels, widths[0], config.kernel_size)
        self.blocks = nn.ModuleList(
            EncoderBlock(config, widths[level], widths[level + 1], stride)
            for level, stride in enumerate(config.strides)
        )
        self.output_conv = CausalConv1d(widths[-1], config.hidden_size, 3)
        self.multires_path = MultiresPath(config) if config.multires_depth else None

    def forward(self, waveform: torch.Tensor, run: Runner = run_whole) -> torch.Tensor:
        """(batch, audio_channels, sample) -> (batch, hidden_size, ceil(sample / hop_length))."""
        # `run` calls a layer on the whole signal, or on one chunk with the memory that the layer left behind.
        hidden = run(self.input_conv, waveform)
        for block in self.blocks:
            hidden = block(hidden, run)
        hidden = run(self.output_conv, hidden)
        return hidden if self.multires_path is None else hidden + self.multires_path(waveform, run)


class SoundStreamDecoder(nn.Module):
    """Latents to waveform; no limiter at the end.

    Args:
        config: of the codec.
    """

    def __init__(self, config: SoundStreamConfig) -> None:
        super().__init__()
        widths = config.channels[::-1]
        # Transposed, though it does not upsample: so the original has it, and its weights load unchanged.
        self.input_conv = CausalConvTranspose1d(config.hidden_size, widths[0], config.kernel_size)
        self.blocks = nn.ModuleList(
            DecoderBlock(config, widths[level], widths[level + 1], stride, level in config.wavelet_blocks)
            for level, stride in enumerate(config.strides[::-1])
        )
        self.output_conv = CausalConv1d(widths[-1], config.audio_channels, config.kernel_size)

    def forward(self, hidden: torch.Tensor, run: Runner = run_whole) -> Sequence[torch.Tensor]:
        """All stages: (batch, hidden_size, frame) -> tensors (batch, channels, sample), the last one the waveform."""
        stages = [run(self.input_conv, hidden)]
        for block in self.blocks:
            stages.append(block(stages[-1], run))
        return [*stages, run(self.output_conv, stages[-1])]


__all__ = ["SoundStreamDecoder", "SoundStreamEncoder"]
