"""The interarrival scheme: waits, starts and ends of notes, as MIDI itself has them.

Source: the baseline encoding of the Anticipatory Music Transformer (arXiv 2306.08620, original repository
jthickstun/anticipation).
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable

from melreformer_hf.processing.midi.notes import (
    NUM_PITCHES,
    MidiChange,
    MidiNote,
    MidiSource,
    check_notes,
    note_changes,
    seconds_to_ticks,
    timed_changes,
)
from melreformer_hf.processing.midi.vocabulary import INTERARRIVAL, MAX_DURATION_TICKS

ON_VELOCITY = 96
_ON, _OFF = INTERARRIVAL.first["on"], INTERARRIVAL.first["off"]


def _tokens(waits_and_changes: Iterable[tuple[int, MidiChange]]) -> tuple[list[int], int]:
    tokens, cut = [], 0
    for wait, change in waits_and_changes:
        cut += wait >= MAX_DURATION_TICKS
        if wait > 0:
            tokens.append(min(wait, MAX_DURATION_TICKS - 1))
        tokens.append((_ON if change.starts else _OFF) + NUM_PITCHES * change.instrument + change.pitch)
    return tokens, cut


def read_changes(source: MidiSource) -> tuple[list[int], int]:
    """Interarrival tokens of a MIDI file, and how many waits had to be cut to 9.99 s.

    Raises:
        ValueError: the file is damaged, of type 2, or counts in SMPTE frames.
        FileNotFoundError: the path does not exist.
        ImportError: mido is not installed.
    """
    return _tokens((seconds_to_ticks(since), change) for _, since, _, change in timed_changes(source))


def notes_to_changes(notes: Iterable[MidiNote]) -> tuple[list[int], int]:
    """Interarrival tokens of notes, and how many waits had to be cut to 9.99 s.

    Raises:
        ValueError: a note is out of range.
    """
    changes = note_changes(check_notes(notes))
    before = [0, *(change.tick for change in changes)]
    return _tokens((change.tick - tick, change) for change, tick in zip(changes, before, strict=False))


def decode_changes(tokens: Iterable[int]) -> list[MidiChange]:
    """Starts and ends of notes; separators are passed over, starts get velocity 96.

    Raises:
        ValueError: a number is outside the vocabulary.
    """
    changes, tick = [], 0
    for token in tokens:
        name, value = INTERARRIVAL.locate(token)
        if name == "wait":
            tick += value
        elif name != "separator":
            instrument, pitch = divmod(value, NUM_PITCHES)
            changes.append(MidiChange(tick, name == "on", pitch, instrument, ON_VELOCITY))
    return changes


def changes_to_notes(changes: Iterable[MidiChange]) -> list[MidiNote]:
    """Notes in the order of their onsets: an end belongs to the earliest open note of its pitch and instrument.

    Notes that never end have duration `None`; ends without a start are passed over.
    """
    notes: list[MidiNote] = []
    waiting: defaultdict[tuple[int, int], deque[int]] = defaultdict(deque)
    for change in changes:
        queue = waiting[change.instrument, change.pitch]
        if change.starts:
            queue.append(len(notes))
            notes.append(MidiNote(change.tick, None, change.pitch, change.instrument, change.velocity))
        elif queue:
            index = queue.popleft()
            notes[index] = notes[index]._replace(duration=change.tick - notes[index].onset)
    return notes


__all__ = ["changes_to_notes", "decode_changes", "notes_to_changes", "read_changes"]
