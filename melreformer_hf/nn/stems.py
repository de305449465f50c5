"""What models share that split a recording into vocals and instrumental."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Stems(NamedTuple):
    """Separated recording.

    Args:
        vocals: the shape of the mixture.
        instrumental: the shape of the mixture; the two add up to it.
    """

    vocals: torch.Tensor
    instrumental: torch.Tensor


def check_recording(waveform: torch.Tensor, channels: int, rate: int, sampling_rate: int | None = None) -> None:
    """Refuse what a model for recordings of so many channels cannot separate.

    Args:
        waveform: (channels, sample) or (batch, channels, sample).
        channels: that the model takes.
        rate: its samples per second.
        sampling_rate: of the recording, where it is told.

    Raises:
        ValueError: another shape, no samples, another sampling rate, or values that are no finite floating point numbers.
    """
    if sampling_rate is not None and sampling_rate != rate:
        raise ValueError(f"sampling_rate must be {rate}, got {sampling_rate}. Resample the recording first.")
    shape = tuple(waveform.shape)
    if waveform.ndim not in (2, 3) or shape[-2] != channels or 0 in shape:
        hint = (
            "" if channels == 1 else f" A mono recording of (1, samples) fits after waveform.expand({channels}, -1)."
        )
        raise ValueError(f"waveform must be ({channels}, samples) or (batch, {channels}, samples), got {shape}.{hint}")
    if not waveform.is_floating_point() or not waveform.isfinite().all():
        raise ValueError(f"waveform must be floating point and finite, got {waveform.dtype} or NaN, infinity.")


__all__ = ["Stems", "check_recording"]
