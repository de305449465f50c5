"""Which notes of a piano piece are its melody."""

from __future__ import annotations

import numpy as np

_SPREAD_TICKS = 5  # notes that begin within 50 ms are heard as one chord
_LINGER_TICKS = 100  # so long after its key is up a note still hides what is far below it
_FAR = 7  # semitones: melodies step and leap a fifth; beyond it another voice begins


def melody_notes(onsets: np.ndarray, pitches: np.ndarray, durations: np.ndarray) -> np.ndarray:
    """The notes that nothing higher covers: the skyline (Uitdenbogerd and Zobel, ACM Multimedia 1998) of sounding notes.

    A note is covered by a higher one that is held when it begins or begins within 50 ms; also by one more than a fifth
    higher whose key went up less than a second before, so that broken chords between a melody's notes are no melody.

    Args:
        onsets: (note,) ticks of 10 ms, ascending.
        pitches: (note,) 0..127.
        durations: (note,) ticks, positive.

    Returns:
        (note,) bool.
    """
    ends = onsets + durations
    melody = np.ones(len(onsets), dtype=bool)
    latest = np.searchsorted(onsets, onsets + _SPREAD_TICKS, side="right")
    # Nothing that begins earlier than this can still cover the note: a bound, so that long pieces take linear time.
    reach = int(durations.max(initial=0)) + _LINGER_TICKS
    earliest = np.searchsorted(onsets, onsets - reach)
    for index in range(len(onsets)):
        around = slice(earliest[index], latest[index])
        above = pitches[around] - pitches[index]
        held = (above > 0) & (ends[around] > onsets[index])
        lingering = (above > _FAR) & (ends[around] + _LINGER_TICKS > onsets[index])
        melody[index] = not (held | lingering).any()
    return melody


__all__ = ["melody_notes"]
