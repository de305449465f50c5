"""Reading MIDI files: every kind of event by hand, equality with mido, and damage that is named by its byte."""

from __future__ import annotations

import io
import random
import re
import struct
import time
from collections import Counter

import mido
import numpy as np
import pytest
from borders import check_borders
from midi_mutations import mutated, sample_files
from testing_utils import assert_error

from melreformer_hf.processing.midi.interarrival import changes_to_notes, decode_changes, read_changes
from melreformer_hf.processing.midi.notes import MidiNote, check_notes, read_notes, seconds_to_ticks
from melreformer_hf.processing.midi.parsing import read_events
from melreformer_hf.processing.midi.pedal import read_pedal
from melreformer_hf.processing.midi.vocabulary import INTERARRIVAL

ON, OFF, END = b"\x90\x3c\x40", b"\x80\x3c\x00", b"\x00\xff\x2f\x00"


def chunk(name: bytes, data: bytes) -> bytes:
    return name + struct.pack(">I", len(data)) + data


def file_of(*tracks: bytes, kind: int = 1, count: int | None = None, division: int = 50) -> bytes:
    """50 ticks a beat: one tick is one of 10 ms."""
    header = struct.pack(">HHH", kind, len(tracks) if count is None else count, division)
    return chunk(b"MThd", header) + b"".join(chunk(b"MTrk", track) for track in tracks)


def test_every_kind_of_event():
    track = b"".join(
        [
            b"\x00\xff\x03\x04name",
            b"\x05\xc0\x28",  # a program, then notes with running status over a meta event
            b"\x00\x90\x3c\x40",
            b"\x0a\x40\x50",
            b"\x00\xff\x01\x00",
            b"\x0a\x3c\x00",
            b"\x00\xf0\x02\x01\xf7",
            b"\x00\xe0\x00\x40",
            b"\x00\xd0\x10",
            b"\x00\x11",  # running status of one data byte
            b"\x81\x00\x80\x40\x00",  # 128 ticks
            b"\x00\xf8",
            b"\x00\xf2\x01\x02",
            b"\x00\xf7\x00",
        ]
    )
    assert read_notes(file_of(track + END)) == [MidiNote(5, 20, 60, 40, 64), MidiNote(15, 138, 64, 40, 80)]
    assert read_notes(file_of(track)) == read_notes(file_of(track + END + b"whatever"))  # an end is not needed
    events = read_events(file_of(track))
    assert len(events.seconds) == 14 and events.status[2] == 0x90 and events.first[3] == 0x40


def test_long_runs_are_read_as_short_ones():
    """Thirty notes in one run of messages, and the same with an event between any two, which is read one by one."""
    random_ = random.Random(0)
    plain, broken = b"", b""
    for index in range(30):
        wait = random_.choice([b"\x00", b"\x7f", b"\x81\x00", b"\xff\x7f", b"\x81\x80\x05"])
        status = b"" if index % 3 else bytes([0x90 | random_.randrange(3)])
        message = wait + status + bytes([random_.randrange(128), random_.randrange(128)])
        plain += message
        broken += message + b"\x00\xff\x01\x00"
    one, two = read_events(file_of(plain + END)), read_events(file_of(broken + END))
    real = two.status != 0
    for field in ("seconds", "status", "first", "second"):
        assert np.array_equal(getattr(one, field), getattr(two, field)[real]), field
    assert len(one.seconds) == 30 and one.seconds[-1] > 300
    assert read_notes(file_of(plain + END)) == read_notes(file_of(broken + END))


def by_mido(content: bytes) -> list[MidiNote]:
    """Message by message, with mido's own clock."""
    notes, waiting, programs, now = [], {}, {}, 0.0
    midi = mido.MidiFile(file=io.BytesIO(content))
    for message in midi:
        now += message.time
        if message.type == "program_change":
            programs[message.channel] = message.program
        if message.type not in ("note_on", "note_off"):
            continue
        instrument = 128 if message.channel == 9 else programs.get(message.channel, 0)
        queue = waiting.setdefault((message.channel, instrument, message.note), [])
        if message.type == "note_on" and message.velocity:
            queue.append((len(notes), now))
            notes.append(MidiNote(seconds_to_ticks(now), None, message.note, instrument, message.velocity))
        elif queue:
            index, began = queue.pop(0)
            notes[index] = notes[index]._replace(duration=seconds_to_ticks(now - began))
    return notes


def random_file(seed: int) -> bytes:
    """Overlapping notes, ends without starts, tempos, programs, drums, several tracks, times that are no whole ticks."""
    random_ = random.Random(seed)
    midi = mido.MidiFile(ticks_per_beat=random_.choice([96, 480, 1000]))
    for _ in range(random_.randint(1, 4)):
        track = mido.MidiTrack()
        for _ in range(random_.randint(0, 300)):
            wait, channel = random_.choice([0, 0, random_.randrange(700)]), random_.choice([0, 1, 9])
            kind = random_.random()
            if kind < 0.02:
                track.append(mido.MetaMessage("set_tempo", tempo=random_.randrange(100_000, 900_000), time=wait))
            elif kind < 0.05:
                track.append(
                    mido.Message("program_change", channel=channel, program=random_.randrange(128), time=wait)
                )
            elif kind < 0.2:
                track.append(mido.Message("control_change", control=64, value=random_.randrange(128), time=wait))
            else:
                name, velocity = random_.choice(["note_on", "note_off"]), random_.randrange(0, 128)
                note = random_.randrange(60, 66)
                track.append(mido.Message(name, channel=channel, note=note, velocity=velocity, time=wait))
        midi.tracks.append(track)
    buffer = io.BytesIO()
    midi.save(file=buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("seed", range(12))
def test_notes_are_those_of_mido(seed):
    content = random_file(seed)
    notes = read_notes(content)
    assert notes == by_mido(content)
    # The waits of the other scheme are rounded one by one: its notes may drift, but they are the same notes.
    again = changes_to_notes(decode_changes(read_changes(content)[0]))
    assert [note[2:4] for note in again] == [note[2:4] for note in notes]


@pytest.mark.parametrize(
    ("content", "fragments"),
    [
        (b"", ("b''", "byte 0")),
        (b"MThd\x00\x00\x00\x06\x00\x01", ("header of 6 bytes", "byte 4")),
        (file_of(kind=7), ("type 7", "byte 8")),
        # The status byte is where the time should be: it and the first data byte are the time.
        (file_of(ON, count=3), ("data byte 64 without a status byte", "byte 24")),
        (file_of(b"\x00" + ON, count=3), ("2 of 3 tracks missing", "byte 26")),
        (file_of(END, count=65_535), ("65,534 of 65,535 tracks missing", "byte 26")),
        (file_of(b"\x00" + ON)[:-2], ("chunk of 4 bytes, 2 more than the file has", "byte 14")),
        (file_of(b"\x00\x3c\x40"), ("data byte 60 without a status byte", "byte 23", "track 0")),
        (file_of(b"\x00\xf0\x01\xf7\x00\x3c\x40"), ("data byte 60 without a status byte", "byte 27")),
        (file_of(b"\x00\x90\x3c\x80"), ("above 127", "144", "byte 22")),
        (file_of(b"\x00" + ON + b"\x00\xf4"), ("status byte 244", "byte 27")),
        (file_of(b"\xff\xff\xff\xff\x7f" + ON), ("time of more than four bytes", "byte 22")),
        (file_of(b"\x00\xff\x01\xff\xff\xff\xff\x7f"), ("length of more than four bytes", "byte 22")),
        (file_of(b"\x00\xff\x01\x7f\x00"), ("meta event of kind 1 of 127 bytes", "1 left", "byte 22")),
        (file_of(b"\x00\xff\x51\x00"), ("tempo of 0 bytes", "byte 22")),
        (file_of(b"\x00\xff\x51\x03\x00\x00\x00"), ("0 microseconds per quarter note", "byte 22")),
        (file_of(b"\x81"), ("time that the track's end cuts off", "byte 22")),
        (file_of(b"\x00\x90\x3c"), ("message of 2 bytes where its track has 1 left", "byte 22")),
        (file_of((b"\xff\xff\xff\x7f" + ON) * 20, division=1), ("hours", "at most 100 hours", "byte 22")),
        (
            file_of((b"\x83\x60" + ON) * 20 + b"\x00\xff\x51\x03\xff\xff\xff" + (b"\xff\xff\xff\x7f" + ON) * 9),
            ("hours",),
        ),
    ],
)
def test_damage_is_named(content, fragments):
    for read in (read_notes, read_changes, read_pedal):
        with pytest.raises(ValueError) as error:
            read(content)
        assert_error(error, *fragments)


def test_chunks_of_other_kinds_are_passed_over():
    content = file_of(count=1) + chunk(b"XFIH", b"something") + chunk(b"MTrk", b"\x00" + ON + b"\x0a" + OFF)
    assert read_notes(content) == [MidiNote(0, 10, 60, 0, 64)]


def test_65535_tracks_take_no_longer_than_reading():
    content = file_of(*[b"\x00" + ON + b"\x01" + OFF + END] * 65_535)
    began = time.process_time()
    assert len(read_notes(content)) == 65_535
    assert time.process_time() - began < 10


def outcomes_of(numbers: range) -> Counter[str]:
    """What becomes of mutated files: notes, or a ValueError that names a byte or the fault of the whole file, soon."""
    outcomes: Counter[str] = Counter()
    for number in numbers:
        content = mutated(sample_files(), number)
        began = time.process_time()
        try:
            notes = read_notes(content)
            check_notes(notes)
            read_pedal(content)
            tokens = read_changes(content)[0]
            assert all(0 <= token < INTERARRIVAL.size for token in tokens) and bool(tokens) >= bool(notes)
            outcomes["read"] += 1
        except ValueError as error:
            named = re.search(r"at byte \d+|type 2|SMPTE", str(error))
            assert named, str(error)
            outcomes[re.sub(r"\d+", "", named[0])] += 1
        assert time.process_time() - began < 5, number
    return outcomes


def test_mutated_files_are_read_or_refused():
    outcomes = outcomes_of(range(400))
    assert outcomes["read"] > 60 and outcomes["at byte "] > 100, outcomes


@pytest.mark.slow
def test_100000_mutated_files_are_read_or_refused():
    outcomes = outcomes_of(range(1000, 101_000))
    assert outcomes.total() == 100_000 and min(outcomes.values()) > 300, outcomes


def test_borders_of_notes():
    usual = MidiNote(0, 1, 60, 0, 64)
    inside = {"onset": (0,), "duration": (0, None), "pitch": (0, 127), "instrument": (0, 128), "velocity": (1, 127)}
    outside = {"onset": (-1,), "duration": (-1,), "pitch": (-1, 128), "instrument": (-1, 129), "velocity": (0, 128)}
    check_borders(lambda **changed: check_notes([usual._replace(**changed)]), inside, outside)
