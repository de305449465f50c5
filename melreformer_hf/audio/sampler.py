"""Notes played from the recordings of a sound font: any span of a piece, whole or in chunks, to the same samples.

A note is a function of the time since it began and since it was released, so a span of a piece is the sum of its notes
there: nothing is carried from chunk to chunk, and what is streamed equals what is rendered at once. Interpolation, filter
and envelopes are those of FluidSynth (4-point, second-order low-pass, decays that are straight in decibel); there is no
reverb and no chorus.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Protocol

import numpy as np
import torch

from melreformer_hf.audio.soundfont import RANGE_CB, Region, SoundFont

BUNDLED_PIANO = Path(__file__).parents[1] / "checkpoints" / "piano-samples" / "fluidr3_piano.sf2"
# Tones are kept for the next note of the same key: at most so many samples of them, 256 MB.
_KEPT_SAMPLES = 1 << 26
_FIRST_SECONDS = 2.0
_FILTER_TAPS = 512
# FluidSynth plays a sample of full scale that much softer at a gain of 1 (measured; its filter has that gain).
_SCALE = 0.5**0.5


class HeardNotes(Protocol):
    """Notes as they are heard: `processing.midi.sounding.SoundingNotes`, or columns of your own.

    `onset` and `release` (note,) are seconds; `release` is when the damper falls, `inf` where that is not known yet.
    `pitch` (note,) is 0..127, `velocity` (note,) 1..127.
    """

    onset: np.ndarray | torch.Tensor
    release: np.ndarray | torch.Tensor
    pitch: np.ndarray | torch.Tensor
    velocity: np.ndarray | torch.Tensor


class SampledInstrument:
    """Plays notes with a sound font.

    Args:
        soundfont: .sf2 or .sf3 file; default: the piano that comes with the package.
        sampling_rate: samples per second.
        gain: of everything, on the scale of FluidSynth's `-g`: 0.5 leaves head room for full chords.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no sound font, a damaged one, a rate or a gain that is not positive.
    """

    def __init__(
        self, soundfont: str | os.PathLike | None = None, sampling_rate: int = 22050, gain: float = 0.5
    ) -> None:
        if sampling_rate < 1 or not gain > 0:
            raise ValueError(f"sampling_rate and gain must be positive, got {sampling_rate} and {gain}.")
        self.font = SoundFont(BUNDLED_PIANO if soundfont is None else soundfont)
        self.sampling_rate, self.gain = sampling_rate, gain
        self._tones: OrderedDict[Region, tuple[np.ndarray, bool]] = OrderedDict()
        self._regions: dict[tuple[int, int, int], list[Region]] = {}

    def render(self, notes: HeardNotes, first: int, last: int, channels: int = 1, program: int = 0) -> torch.Tensor:
        """A span of a piece.

        Args:
            notes: of the piece, at least those that are heard in the span.
            first: first sample of the span, counted from the beginning of the piece.
            last: the sample after its last.
            channels: 1 mixes down to mono, 2 is stereo.
            program: General MIDI program 0..127; where the font lacks it, its first one plays.

        Returns:
            (channel, sample) float32; full scale is 1, loud chords may go beyond.

        Raises:
            ValueError: other channels, or a pitch or velocity out of range.
        """
        if channels not in (1, 2):
            raise ValueError(f"channels must be 1 or 2, got {channels}.")
        columns = [
            np.asarray(column, dtype=np.float64)
            for column in (notes.onset, notes.release, notes.pitch, notes.velocity)
        ]
        for name, values, low in (("pitch", columns[2], 0), ("velocity", columns[3], 1)):
            if len(values) and not (low <= values.min() and values.max() <= 127):
                raise ValueError(f"{name} must be {low}..127, got {values.min():g}..{values.max():g}.")
        mixed = np.zeros((channels, max(last - first, 0)), dtype=np.float32)
        for start, end, key, force in zip(*columns, strict=True):
            begin = round(start * self.sampling_rate)
            if begin < last:
                for region in self._of(program, int(key), int(force)):
                    self._add(mixed, region, begin, end - start, first)
        return torch.from_numpy(mixed)

    def stream(
        self, notes: HeardNotes, num_samples: int, span: int = 1 << 16, channels: int = 1, program: int = 0
    ) -> Iterator[torch.Tensor]:
        """A piece, span by span: (channel, sample) pieces of `render` of the whole.

        Args:
            notes: of the piece.
            num_samples: its length.
            span: samples of a piece.
            channels: as `render`.
            program: as `render`.
        """
        columns = {name: np.asarray(getattr(notes, name)) for name in ("onset", "release", "pitch", "velocity")}
        struck = {(int(key), int(force)) for key, force in zip(columns["pitch"], columns["velocity"], strict=True)}
        tail = max((region.release for pair in struck for region in self._of(program, *pair)), default=0.0)
        for first in range(0, num_samples, span):
            last = min(first + span, num_samples)
            # Only what can be heard in the span is looked at, so that a long piece costs no more per second.
            begun = columns["onset"] * self.sampling_rate < last + 1
            heard = begun & ((columns["release"] + tail) * self.sampling_rate > first - 1)
            chosen = SimpleNamespace(**{name: column[heard] for name, column in columns.items()})
            yield self.render(chosen, first, last, channels, program)

    @cached_property
    def longest_tail(self) -> float:
        """Seconds that a note may be heard after its release, whatever its key and velocity."""
        return max(
            region.release
            for key in range(128)
            for velocity in (1, 64, 127)
            for region in self.font.regions(0, key, velocity)
        )

    def _of(self, program: int, key: int, velocity: int) -> list[Region]:
        name = (program, key, velocity)
        if name not in self._regions:
            self._regions[name] = self.font.regions(program, key, velocity)
        return self._regions[name]

    def _add(self, mixed: np.ndarray, region: Region, begin: int, held: float, first: int) -> None:
        """Add the part of one note that lies inside the span that begins at the sample `first`."""
        rate = self.sampling_rate
        low, high = max(first - begin, 0), first + mixed.shape[1] - begin
        if np.isfinite(held):
            high = min(high, int((held + region.release) * rate) + 1)
        if low >= high:
            return
        tone = self._tone(region, high)[low:high]
        if not len(tone):
            return
        high = low + len(tone)
        released = max(held, 0.0) * rate
        if high > released:
            since = np.maximum(np.arange(low, high) - released, 0) / rate
            tone = tone * 10 ** (-RANGE_CB / 200 * since / region.release).astype(np.float32)
        place = slice(begin + low - first, begin + high - first)
        gain = _SCALE * self.gain * region.gain
        angle = (region.pan + 1) * np.pi / 4  # of constant power, as FluidSynth pans
        sides = np.cos(angle), np.sin(angle)
        for row, side in zip(mixed, sides if len(mixed) == 2 else [sum(sides) / 2], strict=True):
            row[place] += np.float32(gain * side) * tone

    def _tone(self, region: Region, length: int) -> np.ndarray:
        """The first samples of an undamped note at full velocity; fewer than `length` where it ends."""
        # Loudness, release and pan are applied afterwards: the velocity layers of a key may share a tone.
        name = region._replace(gain=1.0, release=1.0, pan=0.0)
        tone, whole = self._tones.get(name, (np.zeros(0, np.float32), False))
        if len(tone) < length and not whole:
            wanted = max(length, 2 * len(tone), int(_FIRST_SECONDS * self.sampling_rate))
            tone = self._make(region, wanted)
            self._tones[name] = tone, len(tone) < wanted
            while sum(len(kept) for kept, _ in self._tones.values()) > _KEPT_SAMPLES and len(self._tones) > 1:
                self._tones.popitem(last=False)
        self._tones.move_to_end(name)
        return tone[:length]

    def _make(self, region: Region, length: int) -> np.ndarray:
        level = _envelope(region, length, self.sampling_rate)
        points = self.font.recording(region.sample)
        place = region.start + np.arange(len(level)) * (region.step / self.sampling_rate)
        if region.loop is None:
            place = place[: np.searchsorted(place, region.end - 1)]
        tone = _interpolate(points, place, region)
        return _low_pass(tone, region.filter_hz, self.sampling_rate) * level[: len(tone)]


def _envelope(region: Region, length: int, rate: int) -> np.ndarray:
    """The volume envelope before the release: delay, attack, hold, decay, sustain; cut where it has ended."""
    delay, attack, hold, decay, sustain = region.envelope
    time = np.arange(length) / rate - delay
    rising = np.clip(time / max(attack, 1e-9), 0, 1) if attack else (time >= 0).astype(np.float64)
    fallen = np.clip((time - attack - hold) / max(decay, 1e-9), 0, None) * RANGE_CB
    attenuation = np.minimum(fallen, sustain)
    heard = length if sustain < RANGE_CB else int(np.searchsorted(attenuation, RANGE_CB))
    return (rising * 10 ** (-attenuation / 200))[:heard].astype(np.float32)


def _interpolate(points: np.ndarray, place: np.ndarray, region: Region) -> np.ndarray:
    """A recording read at fractional places with third-order polynomials through four points (Catmull-Rom)."""
    if region.loop is not None:
        begin, end = region.loop
        # One turn of the loop behind its end, so that the points around every place lie side by side.
        turn = points[begin + np.arange(4) % (end - begin)]
        points = np.concatenate([points[:end], turn])
        place = np.where(place < end, place, begin + (place - begin) % (end - begin))
    whole = place.astype(np.int64)
    x = (place - whole).astype(np.float32)
    before, here, after, next_ = (points[np.clip(whole + k, 0, len(points) - 1)] for k in (-1, 0, 1, 2))
    slope = 0.5 * (after - before)
    curve = before - 2.5 * here + 2 * after - 0.5 * next_
    twist = 0.5 * (next_ - before) + 1.5 * (here - after)
    return ((twist * x + curve) * x + slope) * x + here


def _low_pass(tone: np.ndarray, corner: float, rate: int) -> np.ndarray:
    """A second-order low-pass without resonance; corners near half the rate change nothing."""
    if corner >= 0.45 * rate or not len(tone):
        return tone
    angle = 2 * np.pi * corner / rate
    bend = np.sin(angle) / np.sqrt(2)  # a quality of 1 / sqrt(2): flat up to the corner
    size = 1 << int(np.ceil(np.log2(len(tone) + _FILTER_TAPS)))
    turn = np.exp(-2j * np.pi * np.arange(size // 2 + 1) / size)
    above = (1 - np.cos(angle)) / 2 * (1 + turn) ** 2
    response = above / (1 + bend - 2 * np.cos(angle) * turn + (1 - bend) * turn**2)
    return np.fft.irfft(np.fft.rfft(tone, size) * response, size)[: len(tone)].astype(np.float32)


__all__ = ["BUNDLED_PIANO", "HeardNotes", "SampledInstrument"]
