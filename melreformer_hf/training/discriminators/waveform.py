"""Multi-period and multi-scale waveform discriminators of HiFi-GAN, in HiFiHybrid's form.

Source: Kong, Kim, Bae, HiFi-GAN (arXiv 2010.05646); original repository TariqAHassan/HiFiHybrid, whose widths, slopes
and two scales these are. `from_original` reads its checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from melreformer_hf.originals.arguments import MAPPING, NONE, SIZE, SIZES, Kind, either, several, take_arguments
from melreformer_hf.originals.formats import OriginalCheckpointMixin, OriginalFormat
from melreformer_hf.originals.renaming import rename_keys
from melreformer_hf.training.discriminators.stacks import SideBySide, judge

_SLOPE = 0.2


def _check_waveform(waveform: torch.Tensor) -> torch.Tensor:
    if waveform.ndim != 2:
        raise ValueError(f"waveform must be (batch, sample), got {tuple(waveform.shape)}.")
    return waveform.unsqueeze(1)


def _format(origin: str, layer: str, names: Mapping[str, tuple[str, Kind]]) -> OriginalFormat:
    """Format of HiFiHybrid's, with its name of a layer within a discriminator and of its arguments."""
    table = [
        (f"discriminators.{{N}}.{layer}", "discriminators.{N}.convs.{N}."),
        ("discriminators.{N}.conv_post.", "discriminators.{N}.output_conv."),
    ]
    return OriginalFormat(
        origin,
        # seq_len serves the original to tell the sizes of its outputs, never to compute one.
        lambda arguments, state_dict: take_arguments(arguments, names, {"seq_len": either(SIZE, NONE)}, origin),
        lambda tensors, model: rename_keys(tensors, table, origin),
        lambda tensors, model: rename_keys(tensors, table, origin, reverse=True),
    )


class PeriodDiscriminator(nn.Module):
    """Looks at every `period`-th sample: the waveform folded to (samples / period, period) and 2-D convolutions.

    Args:
        period: samples between neighbors.
        channels: input width (1) and the widths of the layers.
        kernel_size: taps along time.
        stride: stride along time of all layers but the last.
    """

    def __init__(self, period: int, channels: Sequence[int], kernel_size: int, stride: int) -> None:
        super().__init__()
        self.period = period
        self.convs = nn.ModuleList(
            nn.Conv2d(
                channels[index],
                channels[index + 1],
                (kernel_size, 1),
                # The last layer keeps the length, as in the paper.
                stride=(stride if index + 2 < len(channels) else 1, 1),
                padding=((kernel_size - 1) // 2, 0),
            )
            for index in range(len(channels) - 1)
        )
        self.output_conv = nn.Conv2d(channels[-1], 1, (3, 1), padding=(1, 0))

    def forward(self, waveform: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """(batch, sample) -> logits (batch, position) and the layers' outputs."""
        hidden = _check_waveform(waveform)
        rest = -hidden.shape[-1] % self.period
        if rest:
            # Mirrored, not zeros: a step at the end would be a feature of every clip.
            hidden = nn.functional.pad(hidden, (0, rest), mode="reflect")
        # (batch, 1, sample) -> (batch, 1, sample / period, period): kernels of width 1 then see every period-th sample.
        hidden = hidden.unflatten(-1, (-1, self.period))
        return judge(hidden, self.convs, self.output_conv, _SLOPE)


class MultiPeriodDiscriminator(OriginalCheckpointMixin, SideBySide):
    """One `PeriodDiscriminator` per period; 41,092,165 parameters at the published size.

    Args:
        periods: the periods in samples.
        channels: input width (1) and the widths of the layers.
        kernel_size: taps along time.
        stride: stride along time.
    """

    original_format = _format(
        "original MultiPeriodDiscriminator",
        "blocks.{N}.0.",
        {"periods": ("periods", SIZES), "channels": ("channels", SIZES)}
        | {name: (name, SIZE) for name in ("kernel_size", "stride")},
    )

    def __init__(
        self,
        periods: Sequence[int] = (2, 3, 5, 7, 11),
        channels: Sequence[int] = (1, 32, 128, 512, 1024, 1024),
        kernel_size: int = 5,
        stride: int = 3,
    ) -> None:
        super().__init__([PeriodDiscriminator(period, channels, kernel_size, stride) for period in periods])


class ScaleDiscriminator(nn.Module):
    """Grouped 1-D convolutions with growing strides, after optional average pooling.

    Args:
        channels: widths of the layers.
        kernel_sizes: their kernels.
        strides: their strides.
        groups: their groups.
        pooling: `AvgPool1d` arguments, `None` for the raw waveform.
    """

    def __init__(
        self,
        channels: Sequence[int],
        kernel_sizes: Sequence[int],
        strides: Sequence[int],
        groups: Sequence[int],
        pooling: Mapping[str, int] | None,
    ) -> None:
        super().__init__()
        self.pool = nn.AvgPool1d(**pooling) if pooling else nn.Identity()
        widths = [1, *channels]
        self.convs = nn.ModuleList(
            nn.Conv1d(
                widths[index],
                widths[index + 1],
                kernel_sizes[index],
                stride=strides[index],
                groups=groups[index],
                padding=(kernel_sizes[index] - 1) // 2,
            )
            for index in range(len(channels))
        )
        self.output_conv = nn.Conv1d(channels[-1], 1, 3, padding=1)

    def forward(self, waveform: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """(batch, sample) -> logits (batch, position) and the layers' outputs."""
        # (batch, sample) -> (batch, 1, sample): grouped convolutions want a channel
        return judge(self.pool(_check_waveform(waveform)), self.convs, self.output_conv, _SLOPE)


class MultiScaleDiscriminator(OriginalCheckpointMixin, SideBySide):
    """One `ScaleDiscriminator` per pooling; 19,740,418 parameters at the published size.

    Args:
        poolings: `AvgPool1d` arguments per scale, `None` for the raw waveform.
        channels: widths of the layers.
        kernel_sizes: their kernels.
        strides: their strides.
        groups: their groups.

    Raises:
        ValueError: the lists' lengths differ.
    """

    # `pooling` is the original's only argument; the sizes that are fixed there may be given by our names.
    original_format = _format(
        "original MultiScaleDiscriminator",
        "blocks.{N}.",
        {name: (name, SIZES) for name in ("channels", "kernel_sizes", "strides", "groups")}
        | {"pooling": ("poolings", several(either(MAPPING, NONE)))},
    )

    def __init__(
        self,
        poolings: Sequence[Mapping[str, int] | None] = (None, {"kernel_size": 4, "stride": 2, "padding": 2}),
        channels: Sequence[int] = (128, 128, 256, 512, 1024, 1024, 1024),
        kernel_sizes: Sequence[int] = (15, 41, 41, 41, 41, 41, 5),
        strides: Sequence[int] = (1, 2, 2, 4, 4, 1, 1),
        groups: Sequence[int] = (1, 4, 16, 16, 16, 16, 1),
    ) -> None:
        if len({len(channels), len(kernel_sizes), len(strides), len(groups)}) != 1:
            raise ValueError(
                "channels, kernel_sizes, strides and groups must have one entry per layer, got "
                f"{len(channels)}, {len(kernel_sizes)}, {len(strides)} and {len(groups)}."
            )
        super().__init__(
            [ScaleDiscriminator(channels, kernel_sizes, strides, groups, pooling) for pooling in poolings]
        )


__all__ = [
    "MultiPeriodDiscriminator",
    "MultiScaleDiscriminator",
    "PeriodDiscriminator",
    "ScaleDiscriminator",
]
