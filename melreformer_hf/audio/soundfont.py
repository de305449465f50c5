"""SoundFont 2 files: which recordings answer to a key and a velocity, and how they are played.

Source: SoundFont Technical Specification 2.04 (Creative Labs, 2006). Read is what pianos and other decaying instruments
need: ranges, tuning, loops, the volume envelope, a low-pass, and what velocity does to loudness and brightness. Oscillators
of low frequency and controllers other than velocity are not; the modulation envelope counts with its level of sustain.
Samples may be compressed, as in SF3 files. Values count as FluidSynth counts them where it differs from the specification:
0.4 of the attenuation that a zone names, and no default modulator that makes soft notes dull.
"""

from __future__ import annotations

import io
import math
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

# Numbers of generators (section 8.1.2 of the specification).
_OFFSETS = {"start": (0, 4), "end": (1, 12), "loop_start": (2, 45), "loop_end": (3, 50)}
_FILTER_FC, _ENVELOPE_TO_FC, _PAN, _SUSTAIN_OF_MODULATION, _ATTENUATION = 8, 11, 17, 29, 48
_DELAY, _ATTACK, _HOLD, _DECAY, _SUSTAIN, _RELEASE, _KEY_TO_HOLD, _KEY_TO_DECAY = range(33, 41)
_INSTRUMENT, _KEYS, _VELOCITIES, _COARSE_TUNE, _FINE_TUNE = 41, 43, 44, 51, 52
_SAMPLE, _MODES, _SCALE, _ROOT = 53, 54, 56, 58
_DEFAULTS = {_FILTER_FC: 13500, _SCALE: 100, _ROOT: -1}
_DEFAULTS |= dict.fromkeys((_DELAY, _ATTACK, _HOLD, _DECAY, _RELEASE), -12000)
# What a preset says of these is not added to what the instrument says.
_ABSOLUTE = {_INSTRUMENT, _KEYS, _VELOCITIES, _SAMPLE, _MODES, _ROOT} | {
    number for pair in _OFFSETS.values() for number in pair
}
_COMPRESSED, _ROM = 0x10, 0x8000
# The curves of modulators span so many centibel; a volume envelope from its peak to its end, too.
RANGE_CB = 960.0
_ZONE_ATTENUATION = 0.4
# Velocity makes loud by 960 centibel along the concave curve, unless an instrument says otherwise.
_LOUDER = ((0x0502, _ATTENUATION, 0, 0), 960)
_FROM_VELOCITY, _CURVES = 2, ("linear", "concave", "convex", "switch")


class Region(NamedTuple):
    """A recording as one key at one velocity plays it.

    Args:
        sample: number of the recording.
        start: its first point.
        end: the point after its last.
        loop: first point and the point after the last of the part that is repeated while it sounds; `None` plays once.
        step: points of the recording per second of sound.
        filter_hz: corner of the low-pass.
        envelope: delay, attack, hold, decay in seconds, then the level of sustain as attenuation in centibel.
        release: seconds from full level to `RANGE_CB` below it.
        gain: of velocity and zone.
        pan: -1 left to 1 right.
    """

    sample: int
    start: int
    end: int
    loop: tuple[int, int] | None
    step: float
    filter_hz: float
    envelope: tuple[float, float, float, float, float]
    release: float
    gain: float
    pan: float


@dataclass
class _Zone:
    values: dict[int, int]
    modulators: dict[tuple[int, int, int, int], int]

    def covers(self, key: int, velocity: int) -> bool:
        for number, value in ((_KEYS, key), (_VELOCITIES, velocity)):
            if number in self.values:
                low, high = self.values[number] & 0xFF, self.values[number] >> 8 & 0xFF
                if not low <= value <= high:
                    return False
        return True


def _chunks(data: bytes, begin: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Name, first byte and the byte after the last of each chunk between two bytes."""
    while begin + 8 <= end:
        name, size = struct.unpack_from("<4sI", data, begin)
        if begin + 8 + size > end:
            raise ValueError(f"the chunk {name!r} at byte {begin} ends after the file")
        yield name, begin + 8, begin + 8 + size
        begin += 8 + size + size % 2


def _records(content: bytes, layout: str) -> list[tuple]:
    return list(struct.iter_unpack(f"<{layout}", content))


def _zones(bags: list[tuple], generators: list[tuple], modulators: list[tuple], last: int) -> list[_Zone]:
    """Zones of one preset or instrument; the first is global where it does not name what to play (`last`)."""
    zones, everywhere = [], _Zone({}, {})
    for number, ((first, first_mod), (end, end_mod)) in enumerate(zip(bags, bags[1:], strict=False)):
        values = {
            key: value & 0xFFFF if key in (_KEYS, _VELOCITIES) else value for key, value in generators[first:end]
        }
        own = {(mod[0], mod[1], mod[3], mod[4]): mod[2] for mod in modulators[first_mod:end_mod]}
        zone = _Zone(everywhere.values | values, everywhere.modulators | own)
        if last in values:
            zones.append(zone)
        elif number == 0:
            everywhere = zone
    return zones


class SoundFont:
    """A sound font in memory.

    Args:
        path: .sf2 or .sf3 file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no sound font, or damaged.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"No sound font at {self.path}.")
        data = self.path.read_bytes()
        if data[:4] != b"RIFF" or data[8:12] != b"sfbk":
            raise ValueError(f"soundfont must be an SF2 or SF3 file, got {self.path}, which is none.")
        try:
            self._parse(data)
        except (ValueError, KeyError, IndexError, struct.error, UnicodeDecodeError) as error:
            raise ValueError(f"The sound font {self.path} is damaged: {error or type(error).__name__}.") from error

    def _parse(self, data: bytes) -> None:
        parts: dict[bytes, bytes] = {}
        for name, begin, end in _chunks(data, 12, len(data)):
            if name == b"LIST" and data[begin : begin + 4] in (b"sdta", b"pdta"):
                parts |= {part: data[first:last] for part, first, last in _chunks(data, begin + 4, end)}
        bags = {side: _records(parts[side + b"bag"], "HH") for side in (b"p", b"i")}
        generators = {side: _records(parts[side + b"gen"], "Hh") for side in (b"p", b"i")}
        modulators = {side: _records(parts[side + b"mod"], "HHhHH") for side in (b"p", b"i")}
        instruments = [record[1] for record in _records(parts[b"inst"], "20sH")]
        self._instruments = [
            _zones(bags[b"i"][begin : end + 1], generators[b"i"], modulators[b"i"], _SAMPLE)
            for begin, end in zip(instruments, instruments[1:], strict=False)
        ]
        headers = _records(parts[b"phdr"], "20sHHHIII")
        # (bank, program) -> zones; the first of two that share a number wins.
        self.presets: dict[tuple[int, int], list[_Zone]] = {}
        for (_, program, bank, begin, *_), after in zip(headers, headers[1:], strict=False):
            zones = _zones(bags[b"p"][begin : after[3] + 1], generators[b"p"], modulators[b"p"], _INSTRUMENT)
            self.presets.setdefault((bank, program), zones)
        self._headers = _records(parts[b"shdr"], "20sIIIIIBbHH")[:-1]
        self._points = parts[b"smpl"]
        self._decoded: dict[int, np.ndarray] = {}
        if not self.presets or not self._headers:
            raise ValueError("it has no presets or no samples")
        for zones in (zone for preset in self.presets.values() for zone in preset):
            for part in self._instruments[zones.values[_INSTRUMENT]]:
                self._check_sample(part.values[_SAMPLE])

    def _check_sample(self, number: int) -> None:
        _, begin, end, *_, kind = self._headers[number]
        size = 1 if kind & _COMPRESSED else 2
        if kind & _ROM or not 0 <= begin < end or end * size > len(self._points):
            raise ValueError(f"sample {number} lies outside the file")

    def recording(self, number: int) -> np.ndarray:
        """Points of a recording, float32 with full scale at 1.

        Raises:
            ValueError: compressed samples that cannot be decoded.
        """
        if number not in self._decoded:
            _, begin, end, *_, kind = self._headers[number]
            if kind & _COMPRESSED:
                try:
                    points, _ = soundfile.read(io.BytesIO(self._points[begin:end]), dtype="float32")
                except soundfile.SoundFileError as error:
                    raise ValueError(f"The sound font {self.path} is damaged: sample {number}: {error}.") from error
            else:
                points = np.frombuffer(self._points, "<i2", end - begin, 2 * begin).astype(np.float32) / 32768
            self._decoded[number] = points
        return self._decoded[number]

    def regions(self, program: int, key: int, velocity: int) -> list[Region]:
        """What sounds when a key is struck.

        Args:
            program: 0..127 of bank 0; where the font has no such instrument, its first one plays.
            key: 0..127.
            velocity: 1..127.
        """
        found = []
        for outer in self.presets.get((0, program), self.presets[min(self.presets)]):
            if not outer.covers(key, velocity):
                continue
            for inner in self._instruments[outer.values[_INSTRUMENT]]:
                if inner.covers(key, velocity):
                    found.append(self._region(outer, inner, key, velocity))
        return found

    def _region(self, outer: _Zone, inner: _Zone, key: int, velocity: int) -> Region:
        def value(number: int) -> int:
            own = inner.values.get(number, _DEFAULTS.get(number, 0))
            return own if number in _ABSOLUTE else own + outer.values.get(number, 0)

        modulated = dict([_LOUDER]) | inner.modulators
        for name, amount in outer.modulators.items():
            modulated[name] = modulated.get(name, 0) + amount
        change = {number: 0.0 for number in (_ATTENUATION, _FILTER_FC)}
        for (source, target, amount_source, _), amount in modulated.items():
            if target in change and amount_source == 0 and source & 0xFF == _FROM_VELOCITY:
                change[target] += amount * _curve(source, velocity)
        _, begin, end, loop_start, loop_end, rate, root, correction, _, kind = self._headers[value(_SAMPLE)]
        shift = {name: value(fine) + 32768 * value(coarse) for name, (fine, coarse) in _OFFSETS.items()}
        base = 0 if kind & _COMPRESSED else begin  # loops of compressed samples are counted from their own beginning
        length = len(self.recording(value(_SAMPLE)))
        loop = (loop_start - base + shift["loop_start"], loop_end - base + shift["loop_end"])
        looped = value(_MODES) & 1 and 0 <= loop[0] < loop[1] <= length
        root = value(_ROOT) if value(_ROOT) >= 0 else root
        cents = value(_SCALE) * (key - root) + 100 * value(_COARSE_TUNE) + value(_FINE_TUNE) + correction
        middle = 60 - key
        corner = value(_FILTER_FC) + value(_ENVELOPE_TO_FC) * (1 - value(_SUSTAIN_OF_MODULATION) / 1000)
        attenuation = _ZONE_ATTENUATION * value(_ATTENUATION) + change[_ATTENUATION]
        return Region(
            sample=value(_SAMPLE),
            start=max(shift["start"], 0),
            end=min(length + shift["end"], length),
            loop=loop if looped else None,
            step=rate * 2 ** (cents / 1200),
            filter_hz=8.176 * 2 ** ((corner + change[_FILTER_FC]) / 1200),
            envelope=(
                _seconds(value(_DELAY)),
                _seconds(value(_ATTACK)),
                _seconds(value(_HOLD) + value(_KEY_TO_HOLD) * middle),
                _seconds(value(_DECAY) + value(_KEY_TO_DECAY) * middle),
                float(min(max(value(_SUSTAIN), 0), RANGE_CB)),
            ),
            release=max(_seconds(value(_RELEASE)), 0.01),
            gain=10 ** (-max(attenuation, 0.0) / 200),
            pan=min(max(value(_PAN) / 500, -1.0), 1.0),
        )


def _seconds(timecents: float) -> float:
    """Timecents to seconds; what is shorter than a millisecond is nothing."""
    seconds = 2 ** (min(timecents, 8000) / 1200)
    return seconds if seconds > 1.01e-3 else 0.0


def _curve(source: int, velocity: int) -> float:
    """A modulator's source at a velocity (section 8.2): 0..1, or -1..1 where it is bipolar."""
    share = velocity / 127
    if source & 0x100:
        share = 1 - share
    kind = _CURVES[source >> 10 & 3]
    bipolar = source & 0x200

    def shaped(x: float) -> float:
        if kind == "linear":
            return x
        if kind == "switch":
            return float(x >= 0.5)
        # Twenty decibel per tenth of the distance to the end, from which both curves are made (section 8.2.2).
        rest = x if kind == "convex" else 1 - x
        logarithm = min(-400 / RANGE_CB * math.log10(rest), 1.0) if rest > 0 else 1.0
        return 1 - logarithm if kind == "convex" else logarithm

    return 2 * shaped(share) - 1 if bipolar else shaped(share)


__all__ = ["RANGE_CB", "Region", "SoundFont"]
