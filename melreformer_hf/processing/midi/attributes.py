"""Notes as rows of small numbers, one column per attribute: what a model of notes reads and writes.

| column | values | meaning |
|---|---|---|
| time | 0..`NUM_TIMES` - 1, then `END` | time since the previous note's onset, in steps that grow with it |
| pitch | 0..127 | MIDI pitch |
| duration | 0..`NUM_DURATIONS` - 1 | how long the key is held, in steps that grow with it |
| velocity | 0..31 | loudness, four MIDI values a step |
| pedal | 0, 1 | whether the sustain pedal is down when the note begins |

Times are exact to a tick of 10 ms up to 0.4 s (durations up to 0.2 s), where the ear hears rhythm and spread chords, and
within 3 % (5 %) beyond. Every row of values in these ranges is a note, so that whatever a model draws is valid MIDI.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from melreformer_hf.processing.midi.notes import NUM_PITCHES, UNKNOWN_DURATION_TICKS, MidiNote
from melreformer_hf.processing.midi.pedal import pedal_at

ATTRIBUTES = ("time", "pitch", "duration", "velocity", "pedal")
NUM_VELOCITIES = 32
_VELOCITY_STEP = 128 // NUM_VELOCITIES
MAX_TICKS = 2000


def _growing_steps(exact: int, ratio: float) -> np.ndarray:
    """Ticks 0..exact - 1 one by one, then steps that grow by `ratio` until `MAX_TICKS`."""
    count = int(np.ceil(np.log(MAX_TICKS / exact) / np.log(ratio)))
    grown = np.rint(exact * (MAX_TICKS / exact) ** (np.arange(count + 1) / count)).astype(np.int64)
    return np.concatenate([np.arange(exact), grown])


TIME_TICKS = _growing_steps(40, 1.06)
DURATION_TICKS = _growing_steps(20, 1.10)
NUM_TIMES, NUM_DURATIONS = len(TIME_TICKS), len(DURATION_TICKS)
END = NUM_TIMES
VOCAB_SIZES = (NUM_TIMES + 1, NUM_PITCHES, NUM_DURATIONS, NUM_VELOCITIES, 2)


def nearest_step(ticks: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Indices of the table's entries nearest to `ticks`; what lies beyond the last is the last."""
    ticks = np.asarray(ticks)
    upper = np.clip(np.searchsorted(table, ticks), 1, len(table) - 1)
    lower = upper - 1
    return np.where(ticks - table[lower] <= table[upper] - ticks, lower, upper)


def note_attributes(
    onsets: np.ndarray, pitches: np.ndarray, durations: np.ndarray, velocities: np.ndarray, pedal: np.ndarray
) -> np.ndarray:
    """Rows of attributes of notes in the order of (onset, pitch).

    Args:
        onsets: (note,) ticks of 10 ms; float is allowed, as after a change of tempo.
        pitches: (note,) 0..127.
        durations: (note,) ticks.
        velocities: (note,) 1..127.
        pedal: (note,) bool.

    Returns:
        (note, 5) int64. The first note's time is counted from its own onset: zero.
    """
    # Rounding the differences of quantized onsets, not of the true ones, keeps errors from adding up over a piece.
    times = np.zeros(len(onsets), dtype=np.int64)
    placed = float(onsets[0]) if len(onsets) else 0.0
    for index in range(1, len(onsets)):
        times[index] = nearest_step(max(onsets[index] - placed, 0.0), TIME_TICKS)
        placed += TIME_TICKS[times[index]]
        if times[index] == NUM_TIMES - 1:
            placed = float(onsets[index])  # longer silences than the table has are cut to its longest
    columns = (
        times,
        pitches,
        nearest_step(durations, DURATION_TICKS),
        np.clip(velocities, 1, 127) // _VELOCITY_STEP,
        np.asarray(pedal, dtype=np.int64),
    )
    return np.stack([np.asarray(column, dtype=np.int64) for column in columns], axis=1)


def attributes_of_notes(notes: Sequence[MidiNote], pedal: Iterable[tuple[int, int]] = ()) -> np.ndarray:
    """Rows of attributes of `MidiNote`s, whatever their instruments.

    Args:
        notes: in any order; unknown durations count as 250 ms.
        pedal: intervals (down, up) in ticks.

    Returns:
        (note, 5) int64 in the order of (onset, pitch).
    """
    ordered = sorted(notes, key=lambda note: (note.onset, note.pitch))
    onsets = np.array([note.onset for note in ordered], dtype=np.float64)
    durations = np.array([UNKNOWN_DURATION_TICKS if note.duration is None else note.duration for note in ordered])
    pitches = np.array([note.pitch for note in ordered], dtype=np.int64)
    velocities = np.array([note.velocity for note in ordered], dtype=np.int64)
    return note_attributes(onsets, pitches, durations, velocities, pedal_at(onsets, pedal))


def notes_of_attributes(rows: np.ndarray, start: int = 0, instrument: int = 0) -> list[MidiNote]:
    """`MidiNote`s of rows of attributes: the inverse of `attributes_of_notes` up to the tables' steps.

    Args:
        rows: (note, 5) without `END`.
        start: tick that the first row's time is counted from.
        instrument: of all notes.

    Raises:
        ValueError: a value lies outside its column's range; names row, column and value.
    """
    rows = np.asarray(rows)
    for column, (name, size) in enumerate(zip(ATTRIBUTES, VOCAB_SIZES, strict=True)):
        size -= name == "time"
        bad = np.flatnonzero((rows[:, column] < 0) | (rows[:, column] >= size))
        if len(bad):
            raise ValueError(f"rows[{bad[0]}]: {name} must be in 0..{size - 1}, got {rows[bad[0], column]}.")
    onsets = start + np.cumsum(TIME_TICKS[rows[:, 0]])
    durations = np.maximum(DURATION_TICKS[rows[:, 2]], 1)
    velocities = np.clip(rows[:, 3] * _VELOCITY_STEP + _VELOCITY_STEP // 2, 1, 127)
    values = zip(onsets.tolist(), durations.tolist(), rows[:, 1].tolist(), velocities.tolist(), strict=True)
    return [MidiNote(onset, duration, pitch, instrument, velocity) for onset, duration, pitch, velocity in values]


def pedal_intervals(onsets: Iterable[int], down: Iterable[int]) -> list[tuple[int, int]]:
    """Intervals (down, up) in ticks between the onsets at which the pedal changes; the last one ends with the last onset.

    Args:
        onsets: (note,) ticks, ascending.
        down: (note,) whether the pedal is down at each.
    """
    intervals: list[tuple[int, int]] = []
    begin, last = None, 0
    for onset, pressed in zip(onsets, down, strict=True):
        if pressed and begin is None:
            begin = onset
        elif not pressed and begin is not None:
            intervals.append((begin, onset))
            begin = None
        last = onset
    if begin is not None:
        intervals.append((begin, last + 1))
    return intervals


def pedal_of_attributes(rows: np.ndarray, start: int = 0) -> list[tuple[int, int]]:
    """`pedal_intervals` of rows of attributes."""
    rows = np.asarray(rows)
    return pedal_intervals((start + np.cumsum(TIME_TICKS[rows[:, 0]])).tolist(), rows[:, 4].tolist())


__all__ = [
    "ATTRIBUTES",
    "END",
    "MAX_TICKS",
    "NUM_DURATIONS",
    "NUM_TIMES",
    "NUM_VELOCITIES",
    "TIME_TICKS",
    "DURATION_TICKS",
    "VOCAB_SIZES",
    "attributes_of_notes",
    "nearest_step",
    "note_attributes",
    "notes_of_attributes",
    "pedal_intervals",
    "pedal_of_attributes",
]
