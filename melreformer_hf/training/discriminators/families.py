"""Discriminators of waveforms by name, in any size: what recipes offer as options.

| name | what judges | source |
|---|---|---|
| `mpd` | periods of the waveform | HiFi-GAN |
| `msd` | the waveform at three scales | HiFi-GAN, MelGAN |
| `mrd` | magnitudes at several resolutions | UnivNet |
| `ms_stft` | complex spectra at five resolutions | EnCodec |
| `waveform` | the pooled waveform at three scales | SoundStream, in the form of LumenPallidium/audio_generation |
| `stft_N` | complex spectra of N samples (128, 256, 512, 1024, 2048 ...) | the same |
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from melreformer_hf.nn.conv import apply_weight_norm
from melreformer_hf.training.discriminators.soundstream import PooledWaveformDiscriminator, TwoSidedStftDiscriminator
from melreformer_hf.training.discriminators.spectrogram import MultiResolutionDiscriminator
from melreformer_hf.training.discriminators.stacks import DiscriminatorOutput
from melreformer_hf.training.discriminators.stft import MultiScaleStftDiscriminator
from melreformer_hf.training.discriminators.waveform import MultiPeriodDiscriminator, MultiScaleDiscriminator

FAMILIES = ("mpd", "msd", "mrd", "ms_stft", "waveform")
_SMALLEST_WINDOW = 128
_GROUPS = (1, 4, 16, 64, 256)  # of the published size, 32


def _pooled_waveform(size: int) -> nn.Module:
    widths = (max(1, size // 2), 2 * size, 8 * size, 16 * size, 32 * size, 32 * size)
    # Groups keep their number of channels; thin layers are not grouped.
    groups = [max(1, count * size // 32) for count in _GROUPS]
    return PooledWaveformDiscriminator(channels=widths, groups=(*groups, 1, 1))


def build_discriminator(name: str, size: int = 32) -> nn.Module:
    """A discriminator of waveforms: (batch, sample) -> (logits, feature maps), lists of one entry per sub-discriminator.

    Args:
        name: see above.
        size: channels of the first layers, 32 is the published size; a power of two.

    Raises:
        ValueError: no such name, or the size is no power of two.
    """
    if size < 1 or size & (size - 1):
        raise ValueError(f"discriminator_size must be a power of two, got {size}.")
    if name == "mpd":
        return MultiPeriodDiscriminator(channels=(1, size, 4 * size, 16 * size, 32 * size, 32 * size))
    if name == "msd":
        return MultiScaleDiscriminator(
            channels=[4 * size, 4 * size, 8 * size, 16 * size, 32 * size, 32 * size, 32 * size]
        )
    if name == "mrd":
        return MultiResolutionDiscriminator(channels=size)
    if name == "ms_stft":
        built = MultiScaleStftDiscriminator(channels=size)
        apply_weight_norm(built)
        return built
    if name == "waveform":
        return _pooled_waveform(size)
    kind, _, window = name.partition("_")
    if kind == "stft" and window.isdecimal():
        length = int(window)
        if length >= _SMALLEST_WINDOW and not length & (length - 1):
            return TwoSidedStftDiscriminator(length, size)
    raise ValueError(
        f"discriminators must be some of {', '.join(FAMILIES)} and stft_N with a power of two of at least "
        f"{_SMALLEST_WINDOW}, got {name!r}."
    )


class DiscriminatorEnsemble(nn.Module):
    """Several discriminators as one; (logits, feature maps) of all of them, one entry per sub-discriminator.

    Args:
        names: see `build_discriminator`.
        size: channels of the first layers.

    Raises:
        ValueError: there is no name, or an unknown one.
    """

    def __init__(self, names: Sequence[str], size: int) -> None:
        super().__init__()
        if not names:
            raise ValueError(f"discriminators must name at least one of {', '.join(FAMILIES)} or stft_N, got none.")
        self.families = nn.ModuleList([build_discriminator(name, size) for name in names])

    def forward(self, waveform: torch.Tensor) -> DiscriminatorOutput:
        """(batch, sample) to logits and feature maps."""
        logits, maps = [], []
        for family in self.families:
            family_logits, family_maps = family(waveform)
            # Joined, not stacked: maps of different families have different shapes.
            logits += family_logits
            maps += family_maps
        return logits, maps


__all__ = ["FAMILIES", "DiscriminatorEnsemble", "build_discriminator"]
