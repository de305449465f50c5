"""Notes as the positions of a sequence: those that are played, and among them those that are given.

A given note (a *control*: a note of the melody to accompany, or of what follows a gap) stands in the sequence before the
played notes that should know of it, as in the Anticipatory Music Transformer (Thickstun et al., arXiv 2306.08620). Three
things differ from there:

- Given notes come into sight by number, not by seconds: whenever fewer than `LOOKAHEAD_NOTES` are still to come, the next
  `LOOKAHEAD_BATCH` do. So the first notes behind a gap are known throughout it, silences need no rests of their own, and
  given notes seldom stand between two played ones.
- They stand in front of the played note after which they came into sight: what is played next is always written from the
  position of a played note. Written from a given one, notes came out worse than left to right.
- A given note's own time is counted from that played note, which is long past when it sounds. So every position also tells
  the next given chords as they are from there: what is played with a chord has the very time that stands there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from melreformer_hf.processing.midi.attributes import END, TIME_TICKS, nearest_step
from melreformer_hf.processing.midi.notes import TICKS_PER_SECOND

START, MIDDLE, EVENT, CONTROL = range(4)
LOOKAHEAD_NOTES, LOOKAHEAD_BATCH = 8, 16
UPCOMING_CHORDS = 2
IGNORED = -100


@dataclass
class NoteSequence:
    """Positions of a piece.

    Args:
        roles: (position,) int64: `START` or `MIDDLE`, before it only `CONTROL`, then `EVENT` and `CONTROL`.
        attributes: (position, 5) int64; zeros for `START` and `MIDDLE`.
        seconds: (position,) float32 onsets.
        upcoming: (position, 2 * `UPCOMING_CHORDS`) int64, see `GivenNotes.upcoming`.
        labels: (position, 5) int64: the note that is played next, `IGNORED` where the next position is a given one.
    """

    roles: np.ndarray
    attributes: np.ndarray
    seconds: np.ndarray
    upcoming: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.roles)


class GivenNotes:
    """Hands out given notes in their order when they come into sight, and tells of those that come next.

    Args:
        onsets: (note,) ticks, ascending.
        pitches: (note,).
    """

    def __init__(self, onsets: np.ndarray, pitches: np.ndarray) -> None:
        self.onsets, self.shown = onsets, 0
        self.chords, first = np.unique(onsets, return_index=True)
        self.highest = np.maximum.reduceat(pitches, first) if len(onsets) else pitches

    def due(self, now: float) -> Iterator[int]:
        """Indices of the notes that come into sight when the last played one is at `now`."""
        coming = self.shown - int(np.searchsorted(self.onsets, now, side="right"))
        wanted = self.shown if coming >= LOOKAHEAD_NOTES else self.shown - min(coming, 0) + LOOKAHEAD_BATCH
        while self.shown < len(self.onsets):
            # A chord comes into sight as a whole: what begins with the latest shown note is shown, too.
            if self.shown >= wanted and self.onsets[self.shown] > self.onsets[self.shown - 1]:
                return
            yield self.shown
            self.shown += 1

    def upcoming(self, now: np.ndarray) -> np.ndarray:
        """The next given chords after some moments.

        Args:
            now: (moment,) ticks.

        Returns:
            (moment, 2 * `UPCOMING_CHORDS`) int64: of each chord 1 + the step of `TIME_TICKS` from the moment to it and 1 +
            its highest pitch; zeros where there is none.
        """
        found = np.zeros((len(now), UPCOMING_CHORDS, 2), dtype=np.int64)
        place = np.searchsorted(self.chords, now, side="right")[:, None] + np.arange(UPCOMING_CHORDS)
        known = place < len(self.chords)
        place = place[known]
        ticks = self.chords[place] - np.broadcast_to(now[:, None], known.shape)[known]
        found[known] = np.stack([1 + nearest_step(ticks, TIME_TICKS), 1 + self.highest[place]], axis=-1)
        return found.reshape(len(now), -1)


def given_row(attributes: np.ndarray, onset: float, now: float) -> np.ndarray:
    """A given note's attributes (5,) with its time counted from the last played note at `now`."""
    row = attributes.copy()
    row[0] = nearest_step(max(onset - now, 0.0), TIME_TICKS)
    return row


def note_sequence(
    attributes: np.ndarray, onsets: np.ndarray, given: np.ndarray, begins: bool = True, ends: bool = True
) -> NoteSequence:
    """Positions of notes.

    Args:
        attributes: (note, 5) in the order of onsets; the times are computed anew.
        onsets: (note,) ticks from the beginning of the sequence.
        given: (note,) bool, which notes are given.
        begins: whether the piece begins here, rather than before.
        ends: whether nothing is played after these notes, because the piece ends or the rest of it is given; the end is
            then the last label.
    """
    played, controls = np.flatnonzero(~given), np.flatnonzero(given)
    sight = GivenNotes(onsets[controls], attributes[controls, 1])
    roles, rows, ticks, moments, labels, now = [], [], [], [], [], 0.0

    def add(role: int, row: np.ndarray, tick: float) -> None:
        roles.append(role)
        rows.append(row)
        ticks.append(tick)
        moments.append(now)

    def add_after_given(role: int, row: np.ndarray) -> None:
        for index in sight.due(now):
            note = controls[index]
            add(CONTROL, given_row(attributes[note], onsets[note], now), float(onsets[note]))
            labels.append(nothing)
        add(role, row, now)

    nothing = np.full(attributes.shape[1], IGNORED, dtype=np.int64)
    add_after_given(START if begins else MIDDLE, np.zeros(attributes.shape[1], dtype=np.int64))
    for note in played:
        row = given_row(attributes[note], onsets[note], now)
        # The quantized onset, not the true one: the next time is counted from what was written, so errors do not add up.
        now = now + TIME_TICKS[row[0]] if row[0] < len(TIME_TICKS) - 1 else float(onsets[note])
        labels.append(row)
        add_after_given(EVENT, row)
    last = nothing.copy()
    if ends:
        last[0] = END
    labels.append(last)
    return NoteSequence(
        np.array(roles, dtype=np.int64),
        np.stack(rows),
        (np.array(ticks) / TICKS_PER_SECOND).astype(np.float32),
        sight.upcoming(np.array(moments)),
        np.stack(labels),
    )


__all__ = [
    "CONTROL",
    "EVENT",
    "IGNORED",
    "LOOKAHEAD_BATCH",
    "LOOKAHEAD_NOTES",
    "MIDDLE",
    "START",
    "UPCOMING_CHORDS",
    "GivenNotes",
    "NoteSequence",
    "given_row",
    "note_sequence",
]
