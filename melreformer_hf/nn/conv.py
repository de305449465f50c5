"""One-dimensional convolutions with known reach, causal ones that stream, weight normalization over whole networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

_NORMALIZED = (nn.Conv1d, nn.ConvTranspose1d, nn.Conv2d)


class SameConv1d(nn.Conv1d):
    """Convolution that keeps the length; an odd total padding puts the extra sample on the right.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: taps.
        dilation: samples between taps.
        bias: whether a bias is learned.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, dilation: int = 1, bias: bool = True
    ) -> None:
        total = dilation * (kernel_size - 1)
        # The kernel pads by itself where both sides are equal, which saves a copy of the input.
        even = total % 2 == 0
        super().__init__(
            in_channels, out_channels, kernel_size, dilation=dilation, bias=bias, padding=total // 2 if even else 0
        )
        self.reach = (total // 2, total - total // 2)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(batch, in_channels, sample) -> (batch, out_channels, sample)."""
        before, after = self.reach
        return super().forward(hidden if before == after else nn.functional.pad(hidden, (before, after)))


class UpsamplingConv1d(nn.ConvTranspose1d):
    """Transposed convolution by an integer rate, padded by half of what the kernel exceeds the rate.

    The output has `rate` samples per input sample, and one more at the very end if kernel minus rate is odd.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: taps, at least `rate`.
        rate: output samples per input sample.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, rate: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride=rate, padding=(kernel_size - rate) // 2)

    def sources(self, first: int, last: int) -> tuple[int, int]:
        """The input samples that the output samples `first..last` depend on."""
        # Output n gets taps of input i where n = i * rate + tap - padding, 0 <= tap < kernel.
        rate, padding, kernel = self.stride[0], self.padding[0], self.kernel_size[0]
        return -((kernel - 1 - first - padding) // rate), (last + padding) // rate


class CausalConv1d(nn.Conv1d):
    """Convolution whose output frame `t` sees the input up to sample `(t + 1) * stride - 1` and nothing later.

    A whole signal is preceded by zeros, and followed by as many as the last stride lacks. A stream is cut anywhere:
    `step` holds back what does not fill a stride yet.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: taps; they must reach over at least one stride.
        stride: input samples per output frame.
        dilation: samples between taps.
        groups: groups of channels.
        bias: whether a bias is learned.

    Raises:
        ValueError: the taps do not reach over a stride, so that input samples would be skipped.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        context = dilation * (kernel_size - 1) + 1 - stride
        if context < 0:
            raise ValueError(
                f"kernel_size must reach over the stride: dilation * (kernel_size - 1) + 1 >= stride, got kernel_size "
                f"{kernel_size}, dilation {dilation}, stride {stride}."
            )
        super().__init__(
            in_channels, out_channels, kernel_size, stride=stride, dilation=dilation, groups=groups, bias=bias
        )
        self.context = context

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(batch, in_channels, sample) -> (batch, out_channels, ceil(sample / stride))."""
        return super().forward(nn.functional.pad(hidden, (self.context, -hidden.shape[-1] % self.stride[0])))

    def step(self, hidden: torch.Tensor, memory: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """One chunk of a stream.

        Args:
            hidden: (batch, in_channels, any number of samples, also none).
            memory: what the step before returned; `None` begins a stream.

        Returns:
            (batch, out_channels, every frame that is complete) and the memory for the next step,
            (batch, in_channels, context + samples held back).
        """
        if memory is None:
            memory = hidden.new_zeros(hidden.shape[0], self.in_channels, self.context)
        held = torch.cat([memory, hidden], dim=-1)
        # Whole strides only; the rest waits in the memory together with the context.
        consumed = (held.shape[-1] - self.context) // self.stride[0] * self.stride[0]
        memory = held[..., consumed:].clone()
        if consumed == 0:
            return hidden.new_zeros(hidden.shape[0], self.out_channels, 0), memory
        return super().forward(held[..., : consumed + self.context]), memory


class CausalConvTranspose1d(nn.ConvTranspose1d):
    """Transposed convolution whose output samples `t * stride` to `(t + 1) * stride - 1` see input frames up to `t`.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: taps, at least `stride`; what exceeds the end of the signal is dropped.
        stride: output samples per input frame.
        groups: groups of channels.
        bias: whether a bias is learned.

    Raises:
        ValueError: the kernel is shorter than the stride, so that output samples would see no input.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        if kernel_size < stride:
            raise ValueError(f"kernel_size must be at least the stride {stride}, got {kernel_size}.")
        super().__init__(in_channels, out_channels, kernel_size, stride=stride, groups=groups, bias=bias)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(batch, in_channels, frame) -> (batch, out_channels, frame * stride)."""
        return super().forward(hidden)[..., : hidden.shape[-1] * self.stride[0]]

    def step(self, hidden: torch.Tensor, memory: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """One chunk of a stream.

        Args:
            hidden: (batch, in_channels, any number of frames, also none).
            memory: what the step before returned; `None` begins a stream.

        Returns:
            (batch, out_channels, frame * stride) and the memory for the next step: the begun samples
            (batch, out_channels, kernel_size - stride), without bias.
        """
        return transposed_step(hidden, memory, self.weight, self.bias, self.stride[0], self.groups)


def transposed_step(
    hidden: torch.Tensor,
    memory: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: int,
    groups: int = 1,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One chunk of a transposed convolution, as overlap-add.

    Args:
        hidden: (batch, in_channels, any number of frames, also none).
        memory: what the step before returned; `None` begins a stream.
        weight: (in_channels, out_channels / groups, taps), at least `stride` taps.
        bias: (out_channels,) or `None`.
        stride: output samples per input frame.
        groups: groups of channels.

    Returns:
        (batch, out_channels, frame * stride) and the memory for the next step: the begun samples
        (batch, out_channels, taps - stride), without bias.
    """
    overlap, frames, channels = weight.shape[-1] - stride, hidden.shape[-1], weight.shape[1] * groups
    if memory is None:
        memory = hidden.new_zeros(hidden.shape[0], channels, overlap)
    if frames == 0:
        return hidden.new_zeros(hidden.shape[0], channels, 0), memory
    begun = nn.functional.conv_transpose1d(hidden, weight, None, stride=stride, groups=groups)
    # What earlier frames began ends within these samples.
    begun = begun + nn.functional.pad(memory, (0, begun.shape[-1] - overlap))
    finished, memory = begun[..., : frames * stride], begun[..., frames * stride :].clone()
    return finished if bias is None else finished + bias[:, None], memory


def run_whole(layer: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    """Run a layer on a whole signal; `StreamStep` is its counterpart for one chunk of a stream."""
    return layer(hidden)


Runner = Callable[[nn.Module, torch.Tensor], torch.Tensor]


class StreamStep:
    """Runs the layers of a causal network on one chunk of a stream, each with its own memory.

    A network whose `forward(hidden, run=run_whole)` calls its convolutions as `run(layer, hidden)` works on whole
    signals and, given a `StreamStep`, on streams. Nothing is changed in place: a memory may be used again.

    Args:
        memory: `new_memory` of the step before; `None` begins a stream.
    """

    def __init__(self, memory: Sequence | None = None) -> None:
        self._before = memory
        self._after: list = []

    def __call__(self, layer: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        """Run `layer.step` on a chunk; the layers must come in the same order in every step."""
        before = None if self._before is None else self._before[len(self._after)]
        hidden, after = layer.step(hidden, before)
        self._after.append(after)
        return hidden

    @property
    def new_memory(self) -> tuple:
        """Memories of the layers run so far, in their order."""
        return tuple(self._after)


def has_weight_norm(module: nn.Module) -> bool:
    """Whether any layer below is weight-normalized."""
    return any(parametrize.is_parametrized(layer, "weight") for layer in module.modules())


def apply_weight_norm(module: nn.Module) -> None:
    """Weight-normalize every convolution below `module` (training of GAN vocoders); its function does not change."""
    for layer in module.modules():
        if isinstance(layer, _NORMALIZED) and not parametrize.is_parametrized(layer, "weight"):
            parametrizations.weight_norm(layer, "weight", dim=0)


def remove_weight_norm(module: nn.Module) -> None:
    """Fold every weight norm below `module` into plain weights; its function does not change."""
    for layer in module.modules():
        if isinstance(layer, _NORMALIZED) and parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)


__all__ = [
    "CausalConv1d",
    "CausalConvTranspose1d",
    "Runner",
    "SameConv1d",
    "StreamStep",
    "UpsamplingConv1d",
    "apply_weight_norm",
    "has_weight_norm",
    "remove_weight_norm",
    "run_whole",
    "transposed_step",
]
