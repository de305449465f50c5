"""From keys and pedal to dampers: how long the notes of a piece sound."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from melreformer_hf.nn.sounding import SoundingNotes
from melreformer_hf.processing.midi.notes import DRUMS, TICKS_PER_SECOND, UNKNOWN_DURATION_TICKS, MidiNote
from melreformer_hf.processing.midi.pedal import merge_intervals


def sounding_notes(notes: Iterable[MidiNote], pedal: Iterable[tuple[int, int]] = ()) -> SoundingNotes:
    """The notes of a piano with the moment their dampers fall.

    A key goes up at its note's end, and at the latest when it is struck again; it cannot be down twice. The damper falls
    then, or, when the pedal is down, with the pedal: a note that is struck again under the pedal sounds on.

    Args:
        notes: in any order, with onsets and durations in ticks of 10 ms; unknown durations count as 250 ms. Of notes with
            one pitch and one onset the loudest counts. Drums have no keys and are left out.
        pedal: when it is down, as intervals (down, up) in ticks, the end excluded.

    Returns:
        SoundingNotes with numpy columns, in the order of onset and pitch; times in seconds, float64.
    """
    played = played_notes(notes)
    onset, duration, pitch, velocity = (
        np.array([getattr(note, name) for note in played], dtype=np.int64)
        for name in ("onset", "duration", "pitch", "velocity")
    )
    release = _after_pedal(onset + duration, merge_intervals(pedal))
    return SoundingNotes(onset / TICKS_PER_SECOND, release / TICKS_PER_SECOND, pitch, velocity)


def played_notes(notes: Iterable[MidiNote]) -> list[MidiNote]:
    """What two hands can do on one keyboard: each key is down once, from its onset to its end or its next onset.

    Args:
        notes: in any order; see `sounding_notes`.

    Returns:
        the notes that are played, in the order of onset and pitch, with known durations.
    """
    struck: dict[tuple[int, int], MidiNote] = {}
    for note in notes:
        place = (note.onset, note.pitch)
        if note.instrument != DRUMS and (place not in struck or note.velocity > struck[place].velocity):
            struck[place] = note
    played, following = [], {}
    for onset, pitch in sorted(struck, reverse=True):
        note = struck[onset, pitch]
        duration = UNKNOWN_DURATION_TICKS if note.duration is None else note.duration
        played.append(note._replace(duration=min(duration, following.get(pitch, onset + duration) - onset)))
        following[pitch] = onset
    return played[::-1]


def _after_pedal(key_up: np.ndarray, intervals: list[tuple[int, int]]) -> np.ndarray:
    """When the damper falls: with the pedal where that is down when the key goes up."""
    if not intervals:
        return key_up
    downs, ups = np.array(intervals).T
    place = np.maximum(np.searchsorted(downs, key_up, side="right") - 1, 0)
    return np.where((downs[place] <= key_up) & (key_up < ups[place]), ups[place], key_up)


__all__ = ["SoundingNotes", "played_notes", "sounding_notes"]
