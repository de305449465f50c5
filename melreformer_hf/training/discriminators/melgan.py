"""MelGAN's discriminator: one stack of grouped convolutions per resolution of the waveform.

Source: Kumar et al., MelGAN (arXiv 1910.06711), original repository descriptinc/melgan-neurips. Deviation: plain
weights; `melreformer_hf.nn.conv.apply_weight_norm` normalises them for training as the original does.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from torch import nn

from melreformer_hf.originals.arguments import SIZE, take_arguments
from melreformer_hf.originals.checkpoints import load_from_original, load_original_state_dict
from melreformer_hf.originals.renaming import rename_keys
from melreformer_hf.originals.weight_norm import fold_weight_norms, plain_state_dict, split_weight_norms
from melreformer_hf.training.discriminators.waveform import DiscriminatorOutput, ScaleDiscriminator

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
        self.convs[0] = nn.Conv1d(1, base_channels, _FIRST_KERNEL, padding=_FIRST_KERNEL // 2, padding_mode="reflect")


class MelGanDiscriminator(nn.Module):
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
        shortest = (_FIRST_KERNEL // 2 + 1) * 2 ** (len(self.discriminators) - 1)
        if waveform.ndim != 2 or waveform.shape[-1] < shortest:
            raise ValueError(
                f"waveform must be (batch, sample) with at least {shortest} samples, got {tuple(waveform.shape)}."
            )
        logits, maps = [], []
        for index, discriminator in enumerate(self.discriminators):
            if index:
                waveform = self.halve(waveform.unsqueeze(1)).squeeze(1)
            judged, layers = discriminator(waveform)
            logits.append(judged)
            maps.append(layers)
        return logits, maps

    def _table(self) -> list[tuple[str, str]]:
        last = self.num_layers + 2
        rows = [("layer_0.1.", "convs.0."), (f"layer_{last}.", "output_conv."), ("layer_{N}.0.", "convs.{N}.")]
        return [(f"model.disc_{{N}}.model.{original}", f"discriminators.{{N}}.{ours}") for original, ours in rows]

    @classmethod
    def from_original_arguments(cls, original_arguments: Mapping) -> MelGanDiscriminator:
        """Untrained discriminator of the original's arguments (see `from_original`).

        Raises:
            ValueError: an argument is unknown.
        """
        return cls(**take_arguments(original_arguments, _NAMES, {}, ORIGIN))

    @classmethod
    def from_original(
        cls, state_dict_or_path: Mapping[str, torch.Tensor] | str | os.PathLike, original_arguments: Mapping
    ) -> MelGanDiscriminator:
        """Discriminator with the weights of the original's.

        Args:
            state_dict_or_path: the state dict of the original's `Discriminator`, weight-normed or plain; or a path.
            original_arguments: `num_D`, `ndf`, `n_layers`, `downsampling_factor`; the widest layer, fixed at 1024
                there, may be given as `max_channels`.

        Raises:
            ValueError: unknown arguments; missing, unexpected or misshapen tensors, by name.
        """
        model = cls.from_original_arguments(original_arguments)
        load_from_original(
            model,
            load_original_state_dict(state_dict_or_path),
            lambda tensors: rename_keys(fold_weight_norms(tensors, ORIGIN), model._table(), ORIGIN),
            model._to_original,
            ORIGIN,
        )
        return model

    def to_original_state_dict(self) -> dict[str, torch.Tensor]:
        """The weights under the original's names, as `weight_g` and `weight_v`."""
        return self._to_original(plain_state_dict(self))

    def _to_original(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return split_weight_norms(rename_keys(tensors, self._table(), ORIGIN, reverse=True))


__all__ = ["MelGanDiscriminator", "MelGanScaleDiscriminator"]
