"""One-dimensional ConvNeXt block: the frame-rate workhorse of the fast vocoder and of the expansion's post-net."""

from __future__ import annotations

import torch
from torch import nn

from melreformer_hf.nn.conv import CausalConv1d, Runner, run_whole


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution over time, then a two-layer perceptron over channels, added to its input.

    Source: Liu et al., A ConvNet for the 2020s (arXiv 2201.03545); one-dimensional as in Vocos (arXiv 2306.00814).

    Args:
        hidden_size: channels.
        intermediate_size: width of the perceptron.
        kernel_size: odd kernel of the depthwise convolution in frames.
        dilation: spacing of its taps in frames.
        layer_scale: initial value of the learned scale of the residual branch.
        causal: see the past alone, so that the block streams; else as much of the future.
    """

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        kernel_size: int = 7,
        dilation: int = 1,
        layer_scale: float = 0.1,
        causal: bool = False,
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd so that the block keeps its length, got {kernel_size}.")
        self.layer_scale = layer_scale
        sizes = (hidden_size, hidden_size, kernel_size)
        if causal:
            self.depthwise = CausalConv1d(*sizes, dilation=dilation, groups=hidden_size)
        else:
            padding = dilation * (kernel_size - 1) // 2
            self.depthwise = nn.Conv1d(*sizes, padding=padding, dilation=dilation, groups=hidden_size)
        self.norm = nn.LayerNorm(hidden_size)
        self.up = nn.Linear(hidden_size, intermediate_size)
        self.activation = nn.GELU()
        self.down = nn.Linear(intermediate_size, hidden_size)
        # Small at first (LayerScale, arXiv 2103.17239): deep stacks begin near the identity.
        self.scale = nn.Parameter(torch.full((hidden_size,), layer_scale))

    @property
    def reach(self) -> int:
        """Frames to each side that one output frame depends on; twice as many before it where the block is causal."""
        return self.depthwise.dilation[0] * (self.depthwise.kernel_size[0] - 1) // 2

    def forward(
        self,
        hidden: torch.Tensor,
        run: Runner = run_whole,
        modulation: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """(batch, channel, frame) -> (batch, channel, frame).

        Args:
            hidden: the features.
            run: calls the convolution, see `nn.conv.StreamStep`.
            modulation: factor less one and summand of the normalized features, (batch, frame, channel) each.
        """
        # (batch, channel, frame) -> (batch, frame, channel) for norm and linear layers, and back.
        branch = self.norm(run(self.depthwise, hidden).transpose(1, 2))
        if modulation is not None:
            branch = branch * (1 + modulation[0]) + modulation[1]
        branch = self.down(self.activation(self.up(branch))) * self.scale
        return hidden + branch.transpose(1, 2)


def init_convnext_block(block: ConvNeXtBlock, std: float) -> None:
    """Give a block its initial values; for `_init_weights`, where loaded tensors are guarded against overwriting."""
    from transformers import initialization as init

    for layer in (block.depthwise, block.up, block.down):
        init.trunc_normal_(layer.weight, std=std)
        init.zeros_(layer.bias)
    init.constant_(block.scale, block.layer_scale)


__all__ = ["ConvNeXtBlock", "init_convnext_block"]
