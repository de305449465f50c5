"""MIDI files to notes and back, in ticks of 10 ms.

Source: Thickstun et al., Anticipatory Music Transformer (arXiv 2306.08620), original repository
jthickstun/anticipation; its reading is reproduced to the tick. Times are the running float sum of the seconds between
the merged messages, rounded half to even. Deviations, in writing only and switched off by `like_original`: a note's end
comes before the start of a note at the same tick, so that repeated notes are not cut; drums take no melodic channel.

mido is imported when a file is read or written: the package's other parts work without it.
"""

from __future__ import annotations

import io
import os
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from melreformer_hf._files import replacing

if TYPE_CHECKING:
    from mido import Message, MidiFile

TICKS_PER_SECOND = 100
NUM_PITCHES = 128
DRUMS = 128
NUM_INSTRUMENTS = 129
UNKNOWN_DURATION_TICKS = TICKS_PER_SECOND // 4
_DRUM_CHANNEL = 9
_NUM_CHANNELS = 16
_DEFAULT_TEMPO = 500_000  # microseconds per quarter note, until a file says otherwise
_BEATS_PER_SECOND = 2  # at that tempo, which is what written files are in

MidiSource: TypeAlias = "str | os.PathLike | bytes | io.BufferedIOBase"


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
        raise ImportError("MIDI files need the package mido: pip install melreformer_hf[midi]") from error
    return mido


def read_content(source: MidiSource) -> tuple[bytes, str]:
    """Bytes of a MIDI source, and what to call it in messages.

    Raises:
        FileNotFoundError: the path does not exist.
        TypeError: the source is neither path, bytes nor binary file.
    """
    if isinstance(source, (str, os.PathLike)):
        return Path(source).read_bytes(), str(source)
    if isinstance(source, (bytes, bytearray)):
        return bytes(source), "the MIDI bytes"
    if hasattr(source, "read"):
        return source.read(), "the MIDI stream"
    raise TypeError(f"A MIDI source must be a path, bytes or a binary file, got {type(source).__name__}.")


def check_header(kind: int, division: int, name: str) -> None:
    """Refuse files without one timeline in ticks per quarter note.

    Args:
        kind: the header's type.
        division: the header's division, signed.
        name: of the file, for messages.

    Raises:
        ValueError: type 2, SMPTE frames, or a division of zero.
    """
    if kind == 2:
        raise ValueError(
            f"{name} is a MIDI file of type 2 (independent patterns); only types 0 and 1 have one timeline."
        )
    if division <= 0:
        raise ValueError(f"{name} counts time in SMPTE frames or not at all; only ticks per quarter note are read.")


def _open(source: MidiSource) -> MidiFile:
    mido = import_mido()
    content, name = read_content(source)
    try:
        midi = mido.MidiFile(file=io.BytesIO(content))
    except Exception as error:  # mido raises end-of-file, value, key and index errors alike on damaged files
        raise ValueError(f"{name} is not a readable MIDI file: {error or type(error).__name__}.") from error
    check_header(midi.type, midi.ticks_per_beat, name)
    return midi


def timed_messages(source: MidiSource) -> Iterator[tuple[float, Message]]:
    """Messages of all tracks in the order of time, each with the seconds since the one before."""
    midi = _open(source)
    placed: list[tuple[int, Message]] = []
    for track in midi.tracks:
        tick = 0
        for message in track:
            tick += message.time
            if message.type != "end_of_track":
                placed.append((tick, message))
    placed.sort(key=lambda entry: entry[0])
    before, scale = 0, _DEFAULT_TEMPO * 1e-6 / midi.ticks_per_beat
    for tick, message in placed:
        yield (tick - before) * scale, message
        before = tick
        if message.type == "set_tempo":
            scale = message.tempo * 1e-6 / midi.ticks_per_beat


def timed_changes(source: MidiSource) -> Iterator[tuple[float, float, int, MidiChange]]:
    """Starts and ends of notes of a file, in order.

    Yields:
        seconds from the beginning, seconds since the start or end before, channel, change. Both times are float sums
        over all messages, as the original takes them; `change.tick` is the first one, rounded.
    """
    programs: dict[int, int] = {}
    seconds = since = 0.0
    for delta, message in timed_messages(source):
        seconds += delta
        since += delta
        if message.type == "program_change":
            programs[message.channel] = message.program
        elif message.type in ("note_on", "note_off"):
            instrument = DRUMS if message.channel == _DRUM_CHANNEL else programs.get(message.channel, 0)
            starts = message.type == "note_on" and message.velocity > 0
            change = MidiChange(seconds_to_ticks(seconds), starts, message.note, instrument, message.velocity)
            yield seconds, since, message.channel, change
            since = 0.0


def read_notes(source: MidiSource) -> list[MidiNote]:
    """Notes of a MIDI file in the order of their onsets.

    A note ends at the first end of its pitch on its channel while the channel plays the same instrument; a program
    change in between leaves it without an end.

    Args:
        source: path, bytes or binary file.

    Raises:
        ValueError: the file is damaged, of type 2, or counts in SMPTE frames.
        FileNotFoundError: the path does not exist.
        ImportError: mido is not installed.
    """
    notes: list[MidiNote] = []
    waiting: defaultdict[tuple[int, int, int], deque[tuple[int, float]]] = defaultdict(deque)
    for seconds, _, channel, change in timed_changes(source):
        queue = waiting[change.instrument, change.pitch, channel]
        if change.starts:
            queue.append((len(notes), seconds))
            notes.append(MidiNote(change.tick, None, change.pitch, change.instrument, change.velocity))
        elif queue:
            index, started = queue.popleft()
            notes[index] = notes[index]._replace(duration=seconds_to_ticks(seconds - started))
    return notes


def check_notes(notes: Iterable[MidiNote]) -> list[MidiNote]:
    """The notes as `MidiNote`s, or a ValueError that names the first bad one, its field and the rule."""
    checked = []
    for index, note in enumerate(notes):
        if len(note) != 5:
            raise ValueError(f"notes[{index}] must be (onset, duration, pitch, instrument, velocity), got {note!r}.")
        note = MidiNote(*note)
        rules = (
            ("onset", note.onset >= 0, "at least 0 ticks"),
            ("duration", note.duration is None or note.duration >= 0, "at least 0 ticks, or None where unknown"),
            ("pitch", 0 <= note.pitch < NUM_PITCHES, "0..127"),
            ("instrument", 0 <= note.instrument < NUM_INSTRUMENTS, "0..127, or 128 for drums"),
            ("velocity", 1 <= note.velocity < 128, "1..127"),
        )
        for name, holds, rule in rules:
            if not holds:
                raise ValueError(f"notes[{index}].{name} must be {rule}, got {getattr(note, name)!r}.")
        checked.append(note)
    return checked


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
    "MidiChange",
    "MidiNote",
    "changes_to_midi",
    "check_header",
    "check_notes",
    "import_mido",
    "midi_bytes",
    "note_changes",
    "notes_to_midi",
    "read_content",
    "read_notes",
    "seconds_to_ticks",
    "timed_changes",
    "timed_messages",
    "write_midi",
]
