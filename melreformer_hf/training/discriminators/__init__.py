"""Discriminators: plain modules that return (logits, feature maps), one entry per sub-discriminator.

Names are imported when they are first used. `StyleGan2Discriminator` judges pictures with their durations and has a
form of its own.
"""

from __future__ import annotations

import importlib

_EXPORTS: dict[str, str] = {
    "DiscriminatorDraw": "drawing",
    "MelGanDiscriminator": "melgan",
    "MultiPeriodDiscriminator": "waveform",
    "MultiResolutionDiscriminator": "spectrogram",
    "MultiScaleDiscriminator": "waveform",
    "MultiScaleStftDiscriminator": "stft",
    "PatchDiscriminator": "patch",
    "PooledWaveformDiscriminator": "soundstream",
    "StyleGan2Discriminator": "stylegan2",
    "TwoSidedStftDiscriminator": "soundstream",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_EXPORTS))
