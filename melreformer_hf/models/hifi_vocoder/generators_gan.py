"""The two upsampling generators: HiFi-GAN's and HiFiHybrid's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from melreformer_hf.models.hifi_vocoder.activations_hifi_vocoder import UpDownSnake
from melreformer_hf.nn.conv import SameConv1d, UpsamplingConv1d

_END_KERNEL = 7
_SLOPE = 0.1
_LAST_SLOPE = 0.01


class HifiganResidualBlock(nn.Module):
    """Residual branches of leaky ReLU and dilated convolution, with a plain convolution after each if `paired`.

    Args:
        channels: channels.
        kernel_size: taps of every convolution.
        dilations: one branch each.
        paired: HiFi-GAN's block type "1" (`True`) or "2".
    """

    def __init__(self, channels: int, kernel_size: int, dilations: Sequence[int], paired: bool) -> None:
        super().__init__()
        self.dilated = nn.ModuleList(SameConv1d(channels, channels, kernel_size, dilation) for dilation in dilations)
        self.plain = nn.ModuleList(SameConv1d(channels, channels, kernel_size) for _ in dilations if paired)

    @property
    def reach(self) -> tuple[int, int]:
        """Samples (before, after) that an output sample depends on."""
        layers = [*self.dilated, *self.plain]
        return sum(layer.reach[0] for layer in layers), sum(layer.reach[1] for layer in layers)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(batch, channel, sample) -> the same shape."""
        for index, dilated in enumerate(self.dilated):
            branch = dilated(nn.functional.leaky_relu(hidden, _SLOPE))
            if self.plain:
                branch = self.plain[index](nn.functional.leaky_relu(branch, _SLOPE))
            # Each branch is added before the next one sees the sum: the dilations follow one another.
            hidden = hidden + branch
        return hidden


class HifihybridResidualBlock(nn.Module):
    """One filtered snake, then residual convolutions with nothing between them.

    Args:
        channels: channels.
        kernel_size: taps of every convolution.
        dilations: one convolution each.
    """

    def __init__(self, channels: int, kernel_size: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.activation = UpDownSnake(channels)
        self.convs = nn.ModuleList(
            SameConv1d(channels, channels, kernel_size, dilation, bias=False) for dilation in dilations
        )

    @property
    def reach(self) -> tuple[int, int]:
        """Samples (before, after) that an output sample depends on."""
        layers = [self.activation, *self.convs]
        return sum(layer.reach[0] for layer in layers), sum(layer.reach[1] for layer in layers)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(batch, channel, sample) -> the same shape."""
        hidden = self.activation(hidden)
        for conv in self.convs:
            # No activation between the convolutions: the original filters and bends once per block.
            hidden = conv(hidden) + hidden
        return hidden


class UpsamplingStage(nn.Module):
    """Transposed convolution followed by parallel residual blocks whose outputs are added."""

    def __init__(self, upsample: UpsamplingConv1d, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.upsample = upsample
        self.blocks = nn.ModuleList(blocks)

    def sources(self, first: int, last: int) -> tuple[int, int]:
        """The input samples that the output samples `first..last` depend on."""
        # The blocks work side by side on the same input: the widest decides.
        before = max(block.reach[0] for block in self.blocks)
        after = max(block.reach[1] for block in self.blocks)
        return self.upsample.sources(first - before, last + after)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(batch, in_channel, sample) -> (batch, out_channel, sample * rate)."""
        hidden = self.upsample(hidden)
        total = self.blocks[0](hidden)
        for block in self.blocks[1:]:
            total = total + block(hidden)
        return total


class UpsamplingGenerator(nn.Module):
    """What both generators share: input convolution, stages, output convolution, and their reach."""

    last_reach: tuple[int, int] = (0, 0)

    def __init__(self, input_conv: nn.Module, stages: Sequence[UpsamplingStage], output_conv: nn.Module) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        self.input_conv = input_conv
        self.stages = nn.ModuleList(stages)
        self.output_conv = output_conv

    @property
    def receptive_field_frames(self) -> tuple[int, int]:
        """Frames (before, after) that the samples of a frame depend on."""
        # Asked backwards: which frames do the `rate` samples of one frame depend on?
        rate = 1
        for stage in self.stages:
            rate *= stage.upsample.stride[0]
        first = -self.output_conv.reach[0] - self.last_reach[0]
        last = rate - 1 + self.output_conv.reach[1] + self.last_reach[1]
        for stage in reversed(self.stages):
            first, last = stage.sources(first, last)
        return self.input_conv.reach[0] - first, last + self.input_conv.reach[1]

    def _run(self, stage: UpsamplingStage, hidden: torch.Tensor) -> torch.Tensor:
        if self.gradient_checkpointing and self.training:
            return self._gradient_checkpointing_func(stage.__call__, hidden)
        return stage(hidden)


class HifiganGenerator(UpsamplingGenerator):
    """Leaky ReLUs, the mean of the residual blocks, hyperbolic tangent at the end.

    Args:
        num_mel_bins: mel bands of the input.
        initial_channels: channels after the input convolution; each stage halves them.
        rates: strides of the transposed convolutions.
        kernel_sizes: their kernels.
        block_kernel_sizes: kernels of the parallel residual blocks.
        block_dilations: dilations of each.
        paired: block type "1" (`True`) or "2".
    """

    def __init__(
        self,
        num_mel_bins: int,
        initial_channels: int,
        rates: Sequence[int],
        kernel_sizes: Sequence[int],
        block_kernel_sizes: Sequence[int],
        block_dilations: Sequence[Sequence[int]],
        paired: bool,
    ) -> None:
        stages = []
        for index, (rate, kernel) in enumerate(zip(rates, kernel_sizes, strict=True)):
            wide, narrow = initial_channels // 2**index, initial_channels // 2 ** (index + 1)
            blocks = [
                HifiganResidualBlock(narrow, block_kernel, dilations, paired)
                for block_kernel, dilations in zip(block_kernel_sizes, block_dilations, strict=True)
            ]
            stages.append(UpsamplingStage(UpsamplingConv1d(wide, narrow, kernel, rate), blocks))
        super().__init__(
            SameConv1d(num_mel_bins, initial_channels, _END_KERNEL), stages, SameConv1d(narrow, 1, _END_KERNEL)
        )

    def forward(self, input_features: torch.Tensor, first_frame: int = 0) -> torch.Tensor:
        """(batch, mel, frame) -> (batch, frame * product of rates)."""
        hidden = self.input_conv(input_features.to(self.output_conv.bias.dtype))
        for stage in self.stages:
            # The mean of the parallel blocks; HiFiHybrid keeps the sum.
            hidden = self._run(stage, nn.functional.leaky_relu(hidden, _SLOPE)) / len(stage.blocks)
        waveform = self.output_conv(nn.functional.leaky_relu(hidden, _LAST_SLOPE)).squeeze(1).tanh()
        return waveform.to(input_features.dtype)


class HifihybridGenerator(UpsamplingGenerator):
    """Filtered snakes, the sum of the residual blocks, nothing at the end; kernels are twice the rates.

    Args:
        num_mel_bins: mel bands of the input.
        initial_channels: channels after the input convolution; each stage halves them.
        rates: strides of the transposed convolutions.
        kernel_sizes: their kernels.
        block_kernel_sizes: kernels of the parallel residual blocks.
        block_dilations: dilations of each.
    """

    def __init__(
        self,
        num_mel_bins: int,
        initial_channels: int,
        rates: Sequence[int],
        kernel_sizes: Sequence[int],
        block_kernel_sizes: Sequence[int],
        block_dilations: Sequence[Sequence[int]],
    ) -> None:
        stages = []
        for index, (rate, kernel) in enumerate(zip(rates, kernel_sizes, strict=True)):
            wide, narrow = initial_channels // 2**index, initial_channels // 2 ** (index + 1)
            blocks = [
                HifihybridResidualBlock(narrow, block_kernel, dilations)
                for block_kernel, dilations in zip(block_kernel_sizes, block_dilations, strict=True)
            ]
            stages.append(UpsamplingStage(UpsamplingConv1d(wide, narrow, kernel, rate), blocks))
        super().__init__(
            SameConv1d(num_mel_bins, initial_channels, _END_KERNEL, bias=False),
            stages,
            SameConv1d(narrow, 1, _END_KERNEL),
        )
        self.output_activation = UpDownSnake(narrow)
        self.last_reach = self.output_activation.reach

    def forward(self, input_features: torch.Tensor, first_frame: int = 0) -> torch.Tensor:
        """(batch, mel, frame) -> (batch, frame * product of rates), a few samples more if a rate is odd."""
        hidden = self.input_conv(input_features.to(self.output_conv.bias.dtype))
        for stage in self.stages:
            hidden = self._run(stage, hidden)
        return self.output_conv(self.output_activation(hidden)).squeeze(1).to(input_features.dtype)


__all__ = ["HifiganGenerator", "HifihybridGenerator", "HifiganResidualBlock", "HifihybridResidualBlock"]
