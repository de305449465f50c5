"""Five figures of a recording that tell fog from music: attack, pulse, chroma entropy, quiet frames, level.

They need no reference and no model: each is a number of one waveform, and sets of waveforms are compared by how far the
numbers of one have to move to become those of the other. Levels are in dB of full scale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn.functional import avg_pool1d

from melreformer_hf.metrics.notes import wasserstein_distance

FIGURES = ("attack", "pulse", "chroma_entropy", "quiet", "level")
FLOOR_DB = -80.0
QUIET_DB = -60.0
_HOP_SECONDS, _FRAME_SECONDS = 256 / 22050, 512 / 22050
_CHROMA_SECONDS, _CHROMA_HERTZ = 4096 / 22050, (55.0, 4000.0)
_PULSE_SECONDS = (0.25, 2.0)
_LOUDEST_RISES = 0.995


def _check(waveform: torch.Tensor, sampling_rate: int) -> torch.Tensor:
    needed = math.ceil(2 * _PULSE_SECONDS[1] * sampling_rate)
    if waveform.ndim != 1 or not waveform.is_floating_point() or len(waveform) < needed:
        raise ValueError(
            f"waveform must be (sample,) floating point of at least {2 * _PULSE_SECONDS[1]:g} s ({needed} samples at "
            f"{sampling_rate} Hz), got shape {tuple(waveform.shape)} of {waveform.dtype}."
        )
    return waveform.detach().cpu().float()


def frame_levels(waveform: torch.Tensor, sampling_rate: int) -> torch.Tensor:
    """Level of every frame of 23 ms, 12 ms apart: (frame,) dB, at least `FLOOR_DB`.

    Args:
        waveform: (sample,), full scale at 1, at least four seconds.
        sampling_rate: samples per second.

    Raises:
        ValueError: another shape, or too short.
    """
    size, hop = round(_FRAME_SECONDS * sampling_rate), round(_HOP_SECONDS * sampling_rate)
    power = _check(waveform, sampling_rate).unfold(0, size, hop).square().mean(-1)
    return (10 * torch.log10(power.clamp(min=1e-20))).clamp(min=FLOOR_DB)


def attack(waveform: torch.Tensor, sampling_rate: int) -> float:
    """Rise of the level from one frame to the next, in dB, that one step in 200 exceeds: how sharply notes begin.

    Arguments as of `frame_levels`.
    """
    return torch.quantile(frame_levels(waveform, sampling_rate).diff(), _LOUDEST_RISES).item()


def pulse(waveform: torch.Tensor, sampling_rate: int) -> float:
    """Largest autocorrelation of the rises of the level (of audible ones, smoothed over three frames) at 0.25 to 2 s.

    A steady beat comes near 1; onsets at chance times, and none at all, near 0. Arguments as of `frame_levels`.
    """
    rises = frame_levels(waveform, sampling_rate).clamp(min=QUIET_DB).diff().clamp(min=0)
    rises = avg_pool1d(rises[None], 3, 1)[0]
    rises = rises - rises.mean()
    power = torch.fft.rfft(rises, 2 * len(rises)).abs().square()  # twice the length: no wrapping around
    correlation = torch.fft.irfft(power)[: len(rises)]
    if correlation[0] <= 1e-9:
        return 0.0
    rate = sampling_rate / round(_HOP_SECONDS * sampling_rate)
    first, last = (round(seconds * rate) for seconds in _PULSE_SECONDS)
    return (correlation[first : last + 1].max() / correlation[0]).item()


def chroma_entropy(waveform: torch.Tensor, sampling_rate: int) -> float:
    """Entropy in bits of the power (55 Hz to 4 kHz) in the twelve pitch classes; 3.58 are all alike, a cluster or noise.

    Arguments as of `frame_levels`; NaN of silence.
    """
    waveform, size = _check(waveform, sampling_rate), round(_CHROMA_SECONDS * sampling_rate)
    spectrum = torch.stft(
        waveform, size, size // 4, window=torch.hann_window(size), pad_mode="constant", return_complex=True
    )
    frequency = torch.arange(size // 2 + 1) * sampling_rate / size
    heard = (frequency > _CHROMA_HERTZ[0]) & (frequency < _CHROMA_HERTZ[1])
    classes = torch.round(69 + 12 * torch.log2(frequency[heard] / 440)).long() % 12
    shares = torch.zeros(12).index_add_(0, classes, spectrum[heard].abs().square().sum(-1))
    if not shares.sum() > 0:
        return math.nan
    return torch.special.entr(shares / shares.sum()).sum().item() / math.log(2)


def quiet(waveform: torch.Tensor, sampling_rate: int) -> float:
    """Share of the frames below `QUIET_DB`; arguments as of `frame_levels`."""
    return (frame_levels(waveform, sampling_rate) < QUIET_DB).float().mean().item()


def level(waveform: torch.Tensor, sampling_rate: int) -> float:
    """Root of the mean power, in dB, at least `FLOOR_DB`; arguments as of `frame_levels`."""
    power = _check(waveform, sampling_rate).square().mean().item()
    return max(FLOOR_DB, 10 * math.log10(max(power, 1e-20)))


def sound_figures(waveform: torch.Tensor, sampling_rate: int) -> dict[str, float]:
    """All of `FIGURES` of one recording; arguments as of `frame_levels`."""
    functions = (attack, pulse, chroma_entropy, quiet, level)
    return {name: function(waveform, sampling_rate) for name, function in zip(FIGURES, functions, strict=True)}


def sound_figures_distance(first: Sequence[dict], second: Sequence[dict]) -> dict[str, float]:
    """Wasserstein distances between two sets of recordings in each of `FIGURES`, in the figures' own units.

    Args:
        first: of `sound_figures`, one per recording.
        second: the same of the other set.

    Raises:
        ValueError: a set is empty, or all of it is silent.
    """
    columns = {name: [[item[name] for item in part] for part in (first, second)] for name in FIGURES}
    # Silence has no chroma and counts in the other figures only.
    return {
        name: wasserstein_distance(*([value for value in part if not math.isnan(value)] for part in parts))
        for name, parts in columns.items()
    }


__all__ = [
    "FIGURES",
    "FLOOR_DB",
    "QUIET_DB",
    "attack",
    "chroma_entropy",
    "frame_levels",
    "level",
    "pulse",
    "quiet",
    "sound_figures",
    "sound_figures_distance",
]
