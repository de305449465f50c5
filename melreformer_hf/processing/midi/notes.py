"""MIDI files to notes and back, in ticks of 10 ms.

Source: Thickstun et al., Anticipatory Music Transformer (arXiv 2306.08620), original repository
jthickstun/anticipation; its reading is reproduced to the tick (`columns`). Deviations, in writing only and switched off by
`like_original`: a note's end comes before the start of a note at the same tick, so that repeated notes are not cut; drums
take no melodic channel.

mido is imported when a file is written: the package's other parts work without it.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple, NoReturn

import numpy as np

from melreformer_hf._files import replacing
from melreformer_hf.processing.midi.columns import (
    DRUMS,
    NUM_INSTRUMENTS,
    NUM_PITCHES,
    TICKS_PER_SECOND,
    UNKNOWN_DURATION,
    read_note_columns,
)
from melreformer_hf.processing.midi.parsing import MidiSource

if TYPE_CHECKING:
    from mido import MidiFile

UNKNOWN_DURATION_TICKS = TICKS_PER_SECOND // 4
_DRUM_CHANNEL = 9
_NUM_CHANNELS = 16
_BEATS_PER_SECOND = 2  # at 120 beats a minute, the tempo of files that name none, such as the written ones


class MidiNote(NamedTuple):
    """One note.

    Args:
        onset: start in ticks of 10 ms from the beginning.
        duration: length in ticks; `None` where the file never ends the note.
        pitch: 0..127.
        instrument: General MIDI program 0..127, 128 for drums.
        velocity: 1..127.
    """

    onset: int
    duration: int | None
    pitch: int
    instrument: int
    velocity: int


class MidiChange(NamedTuple):
    """A note's start or end: tick, whether it starts, and what plays."""

    tick: int
    starts: bool
    pitch: int
    instrument: int
    velocity: int


def seconds_to_ticks(seconds: float) -> int:
    """Seconds to ticks of 10 ms, half to even."""
    return round(TICKS_PER_SECOND * seconds)


def import_mido():
    """The module mido, or an ImportError that says how to get it."""
    try:
        import mido
    except ImportError as error:
        raise ImportError("Writing MIDI files needs the package mido: pip install melreformer_hf[midi]") from error
    return mido


def notes_of_columns(columns: np.ndarray) -> list[MidiNote]:
    """The notes of (5, note) columns as `read_note_columns` gives them."""
    notes = list(map(MidiNote._make, zip(*columns.tolist(), strict=True)))
    for index in np.flatnonzero(columns[1] == UNKNOWN_DURATION):
        notes[index] = notes[index]._replace(duration=None)
    return notes


def read_notes(source: MidiSource) -> list[MidiNote]:
    """Notes of a MIDI file in the order of their onsets.

    A note ends at the first end of its pitch on its channel while the channel plays the same instrument; a program
    change in between leaves it without an end.

    Args:
        source: path, bytes or binary file.

    Raises:
        ValueError: the file is damaged, of type 2, counts in SMPTE frames or lasts over 100 hours; the byte is named.
        FileNotFoundError: the path does not exist.
    """
    return notes_of_columns(read_note_columns(source))


def check_notes(notes: Iterable[MidiNote]) -> list[MidiNote]:
    """The notes as `MidiNote`s, or a ValueError that names the first bad one, its field and the rule."""
    checked = []
    for index, note in enumerate(notes):
        if len(note) != 5:
            raise ValueError(f"notes[{index}] must be (onset, duration, pitch, instrument, velocity), got {note!r}.")
        onset, duration, pitch, instrument, velocity = note
        # At once first: files have tens of thousands of notes.
        known = onset >= 0 and 0 <= pitch < NUM_PITCHES and 0 <= instrument < NUM_INSTRUMENTS and 1 <= velocity < 128
        if not known or not (duration is None or duration >= 0):
            _refuse_note(index, MidiNote(*note))
        checked.append(note if type(note) is MidiNote else MidiNote(*note))
    return checked


def _refuse_note(index: int, note: MidiNote) -> NoReturn:
    rules = (
        ("onset", note.onset >= 0, "at least 0 ticks"),
        ("duration", note.duration is None or note.duration >= 0, "at least 0 ticks, or None where unknown"),
        ("pitch", 0 <= note.pitch < NUM_PITCHES, "0..127"),
        ("instrument", 0 <= note.instrument < NUM_INSTRUMENTS, "0..127, or 128 for drums"),
        ("velocity", 1 <= note.velocity < 128, "1..127"),
    )
    name, rule = next((name, rule) for name, holds, rule in rules if not holds)
    raise ValueError(f"notes[{index}].{name} must be {rule}, got {getattr(note, name)!r}.")


def note_changes(notes: Iterable[MidiNote], like_original: bool = False) -> list[MidiChange]:
    """Starts and ends of notes in the order in which a file plays them.

    Args:
        notes: the notes; unknown durations count as 250 ms.
        like_original: starts before ends at the same tick.
    """
    ranked = []
    for note in notes:
        duration = UNKNOWN_DURATION_TICKS if note.duration is None else note.duration
        rank = 1 if like_original or duration == 0 else -1
        ranked.append((note.onset, 0, MidiChange(note.onset, True, *note[2:])))
        end = note.onset + duration
        ranked.append((end, rank, MidiChange(end, False, *note[2:])))
    ranked.sort(key=lambda entry: entry[:2])
    return [change for _, _, change in ranked]


class _Channels:
    """Hands out MIDI channels to instruments."""

    def __init__(self, like_original: bool) -> None:
        self._like_original, self._next = like_original, 0

    def take(self, instrument: int) -> int:
        channel = _DRUM_CHANNEL if instrument == DRUMS else self._next
        if instrument != DRUMS or self._like_original:
            self._next += 1
            self._next += self._next == _DRUM_CHANNEL
        if channel >= _NUM_CHANNELS:
            raise ValueError(
                "The music has more instruments than a MIDI file has channels (15 melodic ones and drums). Leave "
                "instruments out, or write several files."
            )
        return channel


def changes_to_midi(changes: Iterable[MidiChange], like_original: bool = False) -> MidiFile:
    """MIDI file of starts and ends: 120 beats a minute, 50 ticks a beat, one track per instrument.

    Ends of instruments that have not begun are left out.

    Raises:
        ValueError: more instruments than channels.
        ImportError: mido is not installed.
    """
    mido = import_mido()
    midi = mido.MidiFile(type=1, ticks_per_beat=TICKS_PER_SECOND // _BEATS_PER_SECOND)
    channels, playing = _Channels(like_original), {}
    for change in changes:
        if change.instrument not in playing:
            if not change.starts:
                continue
            channel = channels.take(change.instrument)
            program = 0 if change.instrument == DRUMS else change.instrument
            track = mido.MidiTrack([mido.Message("program_change", channel=channel, program=program)])
            midi.tracks.append(track)
            playing[change.instrument] = (track, channel, 0)
        track, channel, before = playing[change.instrument]
        velocity = {"velocity": change.velocity} if change.starts else {}
        kind = "note_on" if change.starts else "note_off"
        time = change.tick - before
        track.append(mido.Message(kind, channel=channel, note=change.pitch, time=time, **velocity))
        playing[change.instrument] = (track, channel, change.tick)
    return midi


def notes_to_midi(notes: Iterable[MidiNote], like_original: bool = False) -> MidiFile:
    """MIDI file of notes.

    Args:
        notes: in any order.
        like_original: write message for message what the original program writes.

    Raises:
        ValueError: a note is out of range, or there are more instruments than channels.
        ImportError: mido is not installed.
    """
    return changes_to_midi(note_changes(check_notes(notes), like_original), like_original)


def midi_bytes(midi: MidiFile) -> bytes:
    """The content of a MIDI file."""
    buffer = io.BytesIO()
    midi.save(file=buffer)
    return buffer.getvalue()


def write_midi(midi: MidiFile, path: str | os.PathLike) -> None:
    """Save a MIDI file; an existing one is replaced at once or not at all."""
    content = midi_bytes(midi)
    with replacing(path) as partial:
        partial.write_bytes(content)


__all__ = [
    "DRUMS",
    "NUM_INSTRUMENTS",
    "NUM_PITCHES",
    "TICKS_PER_SECOND",
    "MidiChange",
    "MidiNote",
    "MidiSource",
    "changes_to_midi",
    "check_notes",
    "import_mido",
    "midi_bytes",
    "note_changes",
    "notes_of_columns",
    "notes_to_midi",
    "read_notes",
    "seconds_to_ticks",
    "write_midi",
]
