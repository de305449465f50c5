"""Small sound fonts made for tests: every value in them is chosen."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import soundfile

RATE = 16000
DELAY, ATTACK, HOLD = 33, 34, 35
SUSTAIN, RELEASE, FILTER, PAN, ATTENUATION, KEYS, VELOCITIES = 37, 38, 8, 17, 48, 43, 44
DECAY, ROOT, SAMPLE, MODES, INSTRUMENT, SCALE = 36, 58, 53, 54, 41, 56


def span(low: int, high: int) -> int:
    """A range of keys or velocities as a generator's value."""
    value = low | high << 8
    return value - 65536 if value > 32767 else value


def timecents(seconds: float) -> int:
    return round(1200 * np.log2(seconds))


def wave(frequency: float, seconds: float) -> np.ndarray:
    """A sine of half of full scale at `RATE`."""
    return 0.5 * np.sin(2 * np.pi * frequency * np.arange(int(seconds * RATE)) / RATE)


def chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


def write_font(
    path: Path,
    samples: list[np.ndarray],
    instrument: list[dict[int, int]],
    modulators: list[tuple[int, int, int, int, int]] = (),
    preset: dict[int, int] | None = None,
    loop: tuple[int, int] | None = None,
    compressed: bool = False,
    number: tuple[int, int] = (0, 0),
) -> Path:
    """One preset with one instrument.

    Args:
        path: of the file.
        samples: recordings at `RATE` of key 60.
        instrument: generators of its zones, the first one global.
        modulators: of the global zone.
        preset: further generators of the preset.
        loop: points of all samples.
        compressed: Vorbis, as in SF3 files.
        number: bank and program.
    """
    points, headers = b"", b""
    for data in samples:
        begin, kind = len(points), 1
        if compressed:
            file = io.BytesIO()
            soundfile.write(file, data, RATE, format="OGG", subtype="VORBIS")
            points, kind = points + file.getvalue(), 0x11
            places = (begin, len(points), *(loop or (0, len(data))))
        else:
            first = begin // 2
            points += np.rint(data * 32767).astype("<i2").tobytes() + b"\0" * 92
            places = (first, first + len(data), *(first + point for point in loop or (0, len(data))))
        headers += struct.pack("<20sIIIIIBbHH", b"sample", *places, RATE, 60, 0, 0, kind)
    headers += struct.pack("<20sIIIIIBbHH", b"EOS", 0, 0, 0, 0, 0, 0, 0, 0, 0)
    zones = [list(zone.items()) for zone in instrument]
    counts = np.cumsum([0, *map(len, zones)]).tolist()
    bags = b"".join(struct.pack("<HH", count, len(modulators) if index else 0) for index, count in enumerate(counts))
    outer = [*(preset or {}).items(), (INSTRUMENT, 0)]
    parts = {
        b"phdr": struct.pack("<20sHHHIII", b"p", number[1], number[0], 0, 0, 0, 0)
        + struct.pack("<20sHHHIII", b"EOP", 0, 0, 1, 0, 0, 0),
        b"pbag": struct.pack("<HHHH", 0, 0, len(outer), 0),
        b"pmod": bytes(10),
        b"pgen": b"".join(struct.pack("<Hh", *pair) for pair in outer) + bytes(4),
        b"inst": struct.pack("<20sH", b"i", 0) + struct.pack("<20sH", b"EOI", len(zones)),
        b"ibag": bags,
        b"imod": b"".join(struct.pack("<HHhHH", *mod) for mod in modulators) + bytes(10),
        b"igen": b"".join(struct.pack("<Hh", *pair) for zone in zones for pair in zone) + bytes(4),
        b"shdr": headers,
    }
    body = chunk(b"LIST", b"INFO" + chunk(b"ifil", struct.pack("<HH", 2, 1)))
    body += chunk(b"LIST", b"sdta" + chunk(b"smpl", points))
    body += chunk(b"LIST", b"pdta" + b"".join(chunk(name, content) for name, content in parts.items()))
    path.write_bytes(chunk(b"RIFF", b"sfbk" + body))
    return path
