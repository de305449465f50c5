"""What several discriminators have in common: a stack of convolutions that is judged by, and several such side by side."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

DiscriminatorOutput = tuple[list[torch.Tensor], list[list[torch.Tensor]]]


def judge(
    hidden: torch.Tensor, convs: Iterable[nn.Module], output_conv: nn.Module, slope: float
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Run a stack with leaky rectifiers.

    Args:
        hidden: (batch, channel, ...).
        convs: the layers.
        output_conv: makes the logits; not rectified.
        slope: of the rectifiers below zero.

    Returns:
        logits (batch, position) and what every layer made, the logit map last.
    """
    maps = []
    for conv in convs:
        hidden = nn.functional.leaky_relu(conv(hidden), slope)
        maps.append(hidden)
    # The logit map is a feature map too: originals match it with the others.
    maps.append(output_conv(hidden))
    return maps[-1].flatten(1), maps


class SideBySide(nn.Module):
    """Several discriminators that hear the same waveform.

    Args:
        discriminators: waveform to (logits, feature maps) each.
    """

    def __init__(self, discriminators: Iterable[nn.Module]) -> None:
        super().__init__()
        self.discriminators = nn.ModuleList(discriminators)

    def forward(self, waveform: torch.Tensor) -> DiscriminatorOutput:
        """Judge.

        Args:
            waveform: (batch, sample), and where a discriminator hears several channels (batch, channel, sample).

        Returns:
            (logits, feature maps): per discriminator a tensor (batch, position), and its list of layer outputs, the
            logit map last.
        """
        # Lists, since the maps of different discriminators have different shapes.
        results = [discriminator(waveform) for discriminator in self.discriminators]
        return [logits for logits, _ in results], [maps for _, maps in results]


__all__ = ["DiscriminatorOutput", "SideBySide", "judge"]
