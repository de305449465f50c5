"""The interarrival scheme: waits, starts and ends of notes, as MIDI itself has them.

Source: the baseline encoding of the Anticipatory Music Transformer (arXiv 2306.08620, original repository
jthickstun/anticipation).
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Iterable

import numpy as np

from melreformer_hf.processing.midi.columns import change_columns, seconds_since, ticks_of
from melreformer_hf.processing.midi.notes import NUM_PITCHES, MidiChange, MidiNote, check_notes, note_changes
from melreformer_hf.processing.midi.parsing import MidiSource, read_events
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
        ValueError: the file is damaged, of type 2, counts in SMPTE frames or lasts over 100 hours; the byte is named.
        FileNotFoundError: the path does not exist.
    """
    events = read_events(source)
    changes = change_columns(events)
    waits = ticks_of(seconds_since(events, changes))
    blocks = np.where(changes.starts, _ON, _OFF)
    pairs = np.stack(
        [waits.clip(max=MAX_DURATION_TICKS - 1), blocks + NUM_PITCHES * changes.instrument + changes.pitch]
    )
    written = np.stack([waits > 0, np.ones_like(changes.starts)])
    return pairs.T[written.T].tolist(), int((waits >= MAX_DURATION_TICKS).sum())


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


def close_changes(changes: Iterable[MidiChange]) -> list[MidiChange]:
    """The same, and at the end of the music an end of every note that still sounds."""
    closed = list(changes)
    sounding: Counter[tuple[int, int]] = Counter()
    for change in closed:
        key = change.instrument, change.pitch
        sounding[key] = sounding[key] + 1 if change.starts else max(sounding[key] - 1, 0)
    end = closed[-1].tick if closed else 0
    ends = [MidiChange(end, False, pitch, instrument, ON_VELOCITY) for instrument, pitch in sounding.elements()]
    return closed + ends


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


__all__ = ["changes_to_notes", "close_changes", "decode_changes", "notes_to_changes", "read_changes"]
