"""Mixtures of two streams, with what they were made of: for separation."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import torch

from melreformer_hf.audio.io import resample
from melreformer_hf.data.recordings import Recordings, is_mostly_silent
from melreformer_hf.data.streams import ItemStream

_SILENCE = 1e-4  # -80 dB of full scale
_KNOTS = 6  # of a random filter
_LOWEST_OCTAVE = 8  # below half the sampling rate, where filters begin to change
_SPEED_STEPS = 1000
_CANDIDATES = 3  # crops that are drawn for each that is held out


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixtureSettings:
    """How two waveforms are mixed; each is drawn for each source by itself.

    Args:
        gains_db: lowest and highest gain in dB; uniform between them.
        swap_channels: probability that left and right change places.
        mute: probability that a source is silent; never both.
        level_db: root mean square, in dB of full scale, that a source is brought to before its gain; `None` leaves it. What
            is softer than -80 dB stays as it is.
        speeds: lowest and highest factor by which a source plays faster, and sounds higher; uniform in logarithms.
        equalizer_db: largest boost or cut in dB of a random smooth filter; 0 is none.
        num_samples: the mixture is cut to this length; `None` leaves what the shorter source has.

    Raises:
        ValueError: gains or speeds out of order, no probability, a negative filter, or no length.
    """

    gains_db: tuple[float, float] = (-6.0, 6.0)
    swap_channels: float = 0.5
    mute: float = 0.05
    level_db: float | None = None
    speeds: tuple[float, float] = (1.0, 1.0)
    equalizer_db: float = 0.0
    num_samples: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.speeds[0] <= self.speeds[1]:
            raise ValueError(f"speeds must be (lowest, highest), above 0, got {self.speeds}.")
        if self.equalizer_db < 0:
            raise ValueError(f"equalizer_db must not be negative, got {self.equalizer_db}.")
        if self.num_samples is not None and self.num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {self.num_samples}.")
        if not self.gains_db[0] <= self.gains_db[1]:
            raise ValueError(f"gains_db must be (lowest, highest), got {self.gains_db}.")
        for name in ("swap_channels", "mute"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be a probability in [0, 1], got {getattr(self, name)}.")


def equalized(waveform: torch.Tensor, gains_db: np.ndarray) -> torch.Tensor:
    """A waveform (..., sample) through a filter without phase.

    Args:
        waveform: to be filtered; its ends meet.
        gains_db: in dB at frequencies evenly spaced in octaves, the last at half the sampling rate; joined by lines.
    """
    bins = waveform.shape[-1] // 2 + 1
    octaves = np.log2(np.arange(bins) / max(bins - 1, 1) + 2.0**-_LOWEST_OCTAVE)
    places = np.linspace(-_LOWEST_OCTAVE, 0.0, len(gains_db))
    factors = 10 ** (np.interp(octaves, places, gains_db) / 20)
    spectrum = torch.fft.rfft(waveform) * torch.from_numpy(factors).to(waveform.dtype)
    return torch.fft.irfft(spectrum, n=waveform.shape[-1])


def leveled(waveform: torch.Tensor, level_db: float) -> torch.Tensor:
    """A waveform with this root mean square in dB of full scale, unless it is nearly silent."""
    level = waveform.square().mean().sqrt().item()
    return waveform if level < _SILENCE else waveform * (10 ** (level_db / 20) / level)


def fixed_mixtures(
    voices: Recordings, accompaniments: Recordings, num_samples: int, count: int, level_db: float
) -> list[torch.Tensor]:
    """The same held-out mixtures every time: pairs of crops without pauses, both at one level.

    Args:
        voices: a split of recordings.
        accompaniments: another, with the same channels.
        num_samples: length of each mixture.
        count: at most so many.
        level_db: root mean square of each source, in dB of full scale.

    Returns:
        (2, channel, num_samples) tensors, the voice first; their sum is the mixture.

    Raises:
        ValueError: no recording is that long, or all crops of a split are mostly silent.
    """
    parts = []
    for recordings in (voices, accompaniments):
        crops = [crop["waveform"] for crop in recordings.fixed_crops(num_samples, _CANDIDATES * count)]
        # Pauses have no ratio: more crops are drawn than are used.
        heard = [crop for crop in crops if not is_mostly_silent(crop, recordings.sampling_rate)][:count]
        if not heard:
            raise ValueError(f"The split {recordings.split!r} must have sound in its recordings, got silence only.")
        parts.append([leveled(crop.reshape(recordings.channels, -1), level_db) for crop in heard])
    return [torch.stack(pair) for pair in zip(*parts, strict=False)]


class MixtureStream(ItemStream):
    """Items of two streams of equal crops, mixed.

    Item `i` mixes item `i` of both; give them different seeds when both read the same recordings. Positions of the two
    are not used: this stream owns the position.

    Args:
        first: for example vocals.
        second: for example accompaniment.
        settings: gains, swaps, mutes.
        seed: of what is drawn here.

    Yields:
        dict of `waveform`, the mixture (samples,) or (channel, samples), `sources` (2, ...) as they sound in it,
        `gains_db` (2,), minus infinity of a muted one, `first` and `second` (the items' names, labels and metadata),
        `num_samples`, `index`.

    Raises:
        ValueError: the streams belong to different processes, or (when iterated) their channels differ.
    """

    def __init__(
        self, first: ItemStream, second: ItemStream, settings: MixtureSettings | None = None, seed: int = 0
    ) -> None:
        if (first.rank, first.world_size) != (second.rank, second.world_size):
            raise ValueError(
                f"Both streams must have one rank and world_size, got {first.rank} of {first.world_size} and "
                f"{second.rank} of {second.world_size}."
            )
        super().__init__(seed, first.rank, first.world_size)
        self.first, self.second, self.settings = first, second, settings or MixtureSettings()

    def __getstate__(self) -> dict:
        # A copy must not share what its streams have open.
        return {**self.__dict__, "first": copy.copy(self.first), "second": copy.copy(self.second)}

    def seek(self, anchor: dict | None) -> None:
        """Both streams go to their parts of the anchor."""
        for name in ("first", "second"):
            getattr(self, name).seek(anchor and anchor[name])

    def _changed(self, waveform: torch.Tensor, random: np.random.Generator) -> torch.Tensor:
        settings = self.settings
        if settings.speeds != (1.0, 1.0):
            speed = np.exp(random.uniform(*np.log(settings.speeds)))
            made = resample(waveform.numpy(), max(1, round(speed * _SPEED_STEPS)), _SPEED_STEPS)
            waveform = torch.from_numpy(made)
        if settings.equalizer_db:
            waveform = equalized(waveform, random.uniform(-settings.equalizer_db, settings.equalizer_db, size=_KNOTS))
        return waveform if settings.level_db is None else leveled(waveform, settings.level_db)

    def item(self, index: int) -> dict:
        """The mixture at `index` of the global sequence."""
        items = [self.first.item(index), self.second.item(index)]
        waveforms = [item.pop("waveform") for item in items]
        if waveforms[0].shape[:-1] != waveforms[1].shape[:-1]:
            shapes = [tuple(waveform.shape) for waveform in waveforms]
            raise ValueError(
                f"Both streams must give the same channels, got shapes {shapes}; open both with channels=."
            )
        random = self.random(index)
        gains = random.uniform(*self.settings.gains_db, size=2)
        swapped = random.random(2) < self.settings.swap_channels
        muted = random.random(2) < self.settings.mute
        if muted.all():
            muted[int(random.integers(2))] = False
        gains[muted] = -np.inf
        # Drawn after all else, and where it is asked for only: other streams stay as they were.
        waveforms = [self._changed(waveform, random) for waveform in waveforms]
        length = min(waveform.shape[-1] for waveform in waveforms)
        length = min(length, self.settings.num_samples or length)
        sources = torch.stack(
            [
                (waveform.flip(0) if swap and waveform.ndim > 1 else waveform)[..., :length] * float(10 ** (gain / 20))
                for waveform, gain, swap in zip(waveforms, gains, swapped, strict=True)
            ]
        )
        anchors = {name: item.pop("anchor", None) for name, item in zip(("first", "second"), items, strict=True)}
        told = {
            name: {key: value for key, value in item.items() if key not in ("index", "num_samples")}
            for name, item in zip(("first", "second"), items, strict=True)
        }
        anchored = {"anchor": anchors} if any(anchors.values()) else {}
        gains_db = torch.from_numpy(gains).float()
        mixed = {"waveform": sources.sum(0), "sources": sources, "gains_db": gains_db, "num_samples": length}
        return {**mixed, **told, "index": index, **anchored}


__all__ = ["MixtureSettings", "MixtureStream", "equalized", "fixed_mixtures", "leveled"]
