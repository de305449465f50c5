"""From keys and pedal to dampers: how long the notes of a piece sound."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from melreformer_hf.nn.sounding import SoundingNotes
from melreformer_hf.processing.midi.notes import DRUMS, TICKS_PER_SECOND, UNKNOWN_DURATION_TICKS, MidiNote
from melreformer_hf.processing.midi.pedal import merge_intervals


def sounding_notes(notes: Sequence[MidiNote], pedal: Iterable[tuple[int, int]] = ()) -> SoundingNotes:
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
    struck: dict[tuple[int, int], MidiNote] = {}
    for note in notes:
        place = (note.onset, note.pitch)
        if note.instrument != DRUMS and (place not in struck or note.velocity > struck[place].velocity):
            struck[place] = note
    ordered = [struck[place] for place in sorted(struck)]
    onset, pitch, velocity = (
        np.array([getattr(note, name) for note in ordered], dtype=np.int64) for name in ("onset", "pitch", "velocity")
    )
    held = [UNKNOWN_DURATION_TICKS if note.duration is None else note.duration for note in ordered]
    key_up = np.minimum(onset + np.array(held, dtype=np.int64), _next_strikes(onset, pitch))
    release = _after_pedal(key_up, merge_intervals(pedal))
    return SoundingNotes(onset / TICKS_PER_SECOND, release / TICKS_PER_SECOND, pitch, velocity)


def _next_strikes(onset: np.ndarray, pitch: np.ndarray) -> np.ndarray:
    """When each note's key is struck again, (note,) ticks; far in the future where it never is."""
    strikes = np.full(len(onset), np.iinfo(np.int64).max)
    following: dict[int, int] = {}
    for index in range(len(onset) - 1, -1, -1):
        strikes[index] = following.get(int(pitch[index]), strikes[index])
        following[int(pitch[index])] = int(onset[index])
    return strikes


def _after_pedal(key_up: np.ndarray, intervals: list[tuple[int, int]]) -> np.ndarray:
    """When the damper falls: with the pedal where that is down when the key goes up."""
    if not intervals:
        return key_up
    downs, ups = np.array(intervals).T
    place = np.maximum(np.searchsorted(downs, key_up, side="right") - 1, 0)
    return np.where((downs[place] <= key_up) & (key_up < ups[place]), ups[place], key_up)


__all__ = ["SoundingNotes", "sounding_notes"]
