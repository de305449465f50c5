"""MIDI files that are damaged on purpose, by a number each: the same number gives the same file."""

from __future__ import annotations

import functools
import io
import random
import re
import struct

import mido

# Bytes that mean something to a reader of MIDI files.
_TELLING = [0x00, 0x7F, 0x80, 0x90, 0xC0, 0xF0, 0xF7, 0xFF, 0x2F, 0x51, 0xFE]


@functools.cache
def sample_files() -> tuple[bytes, ...]:
    """Small whole files: one track and several, running status, tempos, system exclusive messages, pedal."""
    files = []
    for seed in range(6):
        draw = random.Random(seed)
        midi = mido.MidiFile(type=min(seed, 1), ticks_per_beat=draw.choice([24, 96, 480]))
        for _ in range(1 if seed == 0 else draw.randint(1, 4)):
            track = mido.MidiTrack([mido.MetaMessage("track_name", name="a name")])
            track.append(mido.MetaMessage("set_tempo", tempo=draw.randrange(200_000, 900_000)))
            track.append(mido.Message("sysex", data=[1, 2, 3]))
            track.append(mido.Message("program_change", program=draw.randrange(128), channel=seed))
            for _ in range(draw.randint(10, 60)):
                kind = "note_off" if draw.random() < 0.2 else "note_on"
                note, velocity = draw.randrange(40, 80), draw.choice([0, draw.randrange(128)])
                wait = draw.choice([0, draw.randrange(300)])
                track.append(mido.Message(kind, note=note, velocity=velocity, channel=seed, time=wait))
                if draw.random() < 0.1:
                    track.append(mido.Message("control_change", control=64, value=draw.randrange(128)))
            midi.tracks.append(track)
        buffer = io.BytesIO()
        midi.save(file=buffer)
        files.append(buffer.getvalue())
    return tuple(files)


def mutated(files: tuple[bytes, ...], index: int) -> bytes:
    """The mutation of number `index` of one of the files."""
    draw = random.Random(index)
    content = bytearray(draw.choice(files))
    kinds = (_change_bytes, _cut, _repeat, _remove, _lengthen, _header, _chunk_size, _splice)
    for _ in range(draw.choice([1, 1, 1, 2, 4])):
        if content:
            draw.choice(kinds)(content, draw, files)
    if draw.random() < 0.6:
        _mend(content)
    return bytes(content)


def _mend(content: bytearray) -> None:
    """Sizes and number of the tracks as they are, so that the damage within them is reached."""
    places = [found.start() for found in re.finditer(b"MTrk", bytes(content))]
    for place, end in zip(places, [*places[1:], len(content)], strict=False):
        content[place + 4 : place + 8] = struct.pack(">I", max(end - place - 8, 0))
    if places and len(content) >= 14:
        content[10:12] = struct.pack(">H", len(places))


def _change_bytes(content: bytearray, draw: random.Random, _: tuple[bytes, ...]) -> None:
    for _ in range(draw.choice([1, 1, 2, 8])):
        value = draw.choice(_TELLING) if draw.random() < 0.5 else draw.randrange(256)
        content[draw.randrange(len(content))] = value


def _cut(content: bytearray, draw: random.Random, _: tuple[bytes, ...]) -> None:
    del content[draw.randrange(len(content)) :]


def _repeat(content: bytearray, draw: random.Random, _: tuple[bytes, ...]) -> None:
    start = draw.randrange(len(content))
    piece = content[start : start + draw.choice([1, 4, 30])]
    content[start:start] = piece * draw.choice([1, 2, 50])


def _remove(content: bytearray, draw: random.Random, _: tuple[bytes, ...]) -> None:
    start = draw.randrange(len(content))
    del content[start : start + draw.choice([1, 2, 10])]


def _lengthen(content: bytearray, draw: random.Random, _: tuple[bytes, ...]) -> None:
    """Huge times and lengths."""
    start = draw.randrange(len(content))
    content[start:start] = draw.choice(
        [b"\xff\xff\xff\x7f", b"\xff" * 5, b"\x00\xff\x51\x00", b"\x00\xff\x51\x03\0\0\0"]
    )


def _header(content: bytearray, draw: random.Random, _: tuple[bytes, ...]) -> None:
    if len(content) >= 14:
        at = draw.choice([8, 10, 12])
        content[at : at + 2] = struct.pack(">H", draw.choice([0, 1, 2, 3, 0x7FFF, 0x8000, 0xE728, 0xFFFF]))


def _chunk_size(content: bytearray, draw: random.Random, _: tuple[bytes, ...]) -> None:
    at = content.find(b"MTrk")
    if at >= 0:
        size = draw.choice([0, 1, 5, len(content), 0x7FFFFFFF, 0xFFFFFFFF])
        content[at + 4 : at + 8] = struct.pack(">I", size)


def _splice(content: bytearray, draw: random.Random, files: tuple[bytes, ...]) -> None:
    other = draw.choice(files)
    content[draw.randrange(len(content)) :] = other[draw.randrange(len(other)) :]
