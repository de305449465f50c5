"""MelGAN's discriminator: one stack of grouped convolutions per resolution of the waveform.

Source: Kumar et al., MelGAN (arXiv 1910.06711), original repository descriptinc/melgan-neurips. Deviation: plain
weights; `melreformer_hf.nn.conv.apply_weight_norm` normalizes them for training as the original does.
"""

from __future__ import annotations

import torch
from torch import nn

from melreformer_hf.originals.arguments import SIZE, take_arguments
from melreformer_hf.originals.formats import OriginalCheckpointMixin, OriginalFormat
from melreformer_hf.originals.renaming import rename_keys
from melreformer_hf.training.discriminators.stacks import DiscriminatorOutput
from melreformer_hf.training.discriminators.waveform import ScaleDiscriminator

ORIGIN = "original MelGAN discriminator"
_FIRST_KERNEL = 15
_CHANNELS_PER_GROUP = 4
_NAMES = {
    "num_D": ("num_scales", SIZE),
    "ndf": ("base_channels", SIZE),
    "n_layers": ("num_layers", SIZE),
    "downsampling_factor": ("stride", SIZE),
    "max_channels": ("max_channels", SIZE),
}


class MelGanScaleDiscriminator(ScaleDiscriminator):
    """Mirrored input, `num_layers` strided grouped convolutions, two plain ones.

    Args:
        base_channels: channels of the first layer. Strided layers have one group per four channels of their input.
        num_layers: strided layers, each widening by `stride`.
        stride: of these layers; their kernels have ten times as many taps, and one more.
        max_channels: widest layer.

    Raises:
        ValueError: a size is not positive, or the widths cannot be grouped.
    """

    def __init__(self, base_channels: int, num_layers: int, stride: int, max_channels: int) -> None:
        if min(base_channels, num_layers, stride, max_channels) < 1:
            raise ValueError(
                "base_channels, num_layers, stride and max_channels must be positive, got "
                f"{base_channels}, {num_layers}, {stride} and {max_channels}."
            )
        channels, groups = [base_channels], [1]
        for _ in range(num_layers):
            # Four channels per group, whatever the width, so that wide layers of 41 taps stay cheap.
            groups.append(channels[-1] // _CHANNELS_PER_GROUP)
            channels.append(min(channels[-1] * stride, max_channels))
            if groups[-1] < 1 or channels[-2] % groups[-1] or channels[-1] % groups[-1]:
                raise ValueError(
                    f"base_channels={base_channels} and max_channels={max_channels} give a layer from {channels[-2]} "
                    f"to {channels[-1]} channels, which cannot be split into {groups[-1]} groups. Use multiples of "
                    f"{_CHANNELS_PER_GROUP}."
                )
        super().__init__(
            [*channels, min(2 * channels[-1], max_channels)],
            [_FIRST_KERNEL, *[10 * stride + 1] * num_layers, 5],
            [1, *[stride] * num_layers, 1],
            [*groups, 1],
            None,
        )
        # The base class pads with zeros; here the first layer mirrors.
        self.convs[0] = nn.Conv1d(1, base_channels, _FIRST_KERNEL, padding=_FIRST_KERNEL // 2, padding_mode="reflect")


def _table(model: nn.Module) -> list[tuple[str, str]]:
    last = model.num_layers + 2
    rows = [("layer_0.1.", "convs.0."), (f"layer_{last}.", "output_conv."), ("layer_{N}.0.", "convs.{N}.")]
    return [(f"model.disc_{{N}}.model.{original}", f"discriminators.{{N}}.{ours}") for original, ours in rows]


class MelGanDiscriminator(OriginalCheckpointMixin, nn.Module):
    """One `MelGanScaleDiscriminator` per resolution, each half of the one before.

    Args:
        num_scales: resolutions.
        base_channels: channels of the first layer.
        num_layers: strided layers.
        stride: of these layers.
        max_channels: widest layer.

    Raises:
        ValueError: a size is not positive, or the widths cannot be grouped.
    """

    original_format = OriginalFormat(
        ORIGIN,
        lambda arguments, state_dict: take_arguments(arguments, _NAMES, {}, ORIGIN),
        lambda tensors, model: rename_keys(tensors, _table(model), ORIGIN),
        lambda tensors, model: rename_keys(tensors, _table(model), ORIGIN, reverse=True),
        weight_norm=True,
    )

    def __init__(
        self,
        num_scales: int = 3,
        base_channels: int = 16,
        num_layers: int = 4,
        stride: int = 4,
        max_channels: int = 1024,
    ) -> None:
        super().__init__()
        if num_scales < 1:
            raise ValueError(f"num_scales must be positive, got {num_scales}.")
        self.num_layers = num_layers
        self.discriminators = nn.ModuleList(
            MelGanScaleDiscriminator(base_channels, num_layers, stride, max_channels) for _ in range(num_scales)
        )
        # Zeros of the padding do not count in the mean, or the ends of every clip would sound softer.
        self.halve = nn.AvgPool1d(4, 2, padding=1, count_include_pad=False)

    def forward(self, waveform: torch.Tensor) -> DiscriminatorOutput:
        """Judge.

        Args:
            waveform: (batch, sample).

        Returns:
            (logits, feature maps): per resolution a tensor (batch, position), and its list of layer outputs, the
            logit map last.

        Raises:
            ValueError: the waveform is not (batch, sample), or too short.
        """
        # Mirroring needs more samples than it adds, at the coarsest resolution too.
        shortest = (_FIRST_KERNEL // 2 + 1) * 2 ** (len(self.discriminators) - 1)
        if waveform.ndim != 2 or waveform.shape[-1] < shortest:
            raise ValueError(
                f"waveform must be (batch, sample) with at least {shortest} samples, got {tuple(waveform.shape)}."
            )
        logits, maps = [], []
        for index, discriminator in enumerate(self.discriminators):
            # Each resolution is made from the one before: four samples seen per halving, not two.
            if index:
                waveform = self.halve(waveform.unsqueeze(1)).squeeze(1)
            judged, layers = discriminator(waveform)
            logits.append(judged)
            maps.append(layers)
        return logits, maps


__all__ = ["MelGanDiscriminator", "MelGanScaleDiscriminator"]
