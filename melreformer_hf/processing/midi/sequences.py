"""Notes as the positions of a sequence: those that are played, and among them those that are given.

A given note (a *control*: a note of the melody to accompany, or of what follows a gap) stands in the sequence before the
played notes that should know of it: as soon as the last played note comes within `LOOKAHEAD_TICKS` of it, as in the
Anticipatory Music Transformer (Thickstun et al., arXiv 2306.08620), and in any case while fewer than `LOOKAHEAD_NOTES`
given notes to come are in sight. The second rule is ours: it replaces the original's rests, whose only purpose is that
silence has positions too, and shows from a gap's beginning what follows it.

A given note's own time is counted from the note that was played last when it came into sight, which is long past when it
sounds. So every position also tells the next given chords as they are from there: what is played together with a chord has
the very time that stands there. Without this, notes were predicted worse with a melody in sight than left to right.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from melreformer_hf.processing.midi.attributes import END, TIME_TICKS, nearest_step
from melreformer_hf.processing.midi.notes import TICKS_PER_SECOND

START, MIDDLE, EVENT, CONTROL = range(4)
LOOKAHEAD_TICKS = 5 * TICKS_PER_SECOND
LOOKAHEAD_NOTES = 16
UPCOMING_CHORDS = 2
IGNORED = -100


@dataclass
class NoteSequence:
    """Positions of a piece.

    Args:
        roles: (position,) int64: `START` or `MIDDLE` first, then `EVENT` and `CONTROL`.
        attributes: (position, 5) int64; zeros in the first position.
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
        """Indices of the notes that stand before the next played one, when the last one was at `now`."""
        passed = int(np.searchsorted(self.onsets, now, side="right"))
        while self.shown < len(self.onsets):
            onset = self.onsets[self.shown]
            near = onset <= now + LOOKAHEAD_TICKS or self.shown - passed < LOOKAHEAD_NOTES
            # A chord comes into sight as a whole: what begins with the latest shown note is shown, too.
            if not near and onset > self.onsets[self.shown - 1]:
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
    roles, rows = [START if begins else MIDDLE], [np.zeros(attributes.shape[1], dtype=np.int64)]
    ticks, labels, now = [0.0], [], 0.0
    moments = [0.0]  # when the last played note began, at each position

    def show_given() -> None:
        for index in sight.due(now):
            note = controls[index]
            labels.append(None)
            roles.append(CONTROL)
            rows.append(given_row(attributes[note], onsets[note], now))
            ticks.append(float(onsets[note]))
            moments.append(now)

    for note in played:
        show_given()
        row = given_row(attributes[note], onsets[note], now)
        # The quantized onset, not the true one: the next time is counted from what was written, so errors do not add up.
        now = now + TIME_TICKS[row[0]] if row[0] < len(TIME_TICKS) - 1 else float(onsets[note])
        labels.append(row)
        roles.append(EVENT)
        rows.append(row)
        ticks.append(now)
        moments.append(now)
    if ends:
        show_given()
    last = np.full(attributes.shape[1], IGNORED, dtype=np.int64)
    if ends:
        last[0] = END
    labels.append(last)
    nothing = np.full(attributes.shape[1], IGNORED, dtype=np.int64)
    return NoteSequence(
        np.array(roles, dtype=np.int64),
        np.stack(rows),
        (np.array(ticks) / TICKS_PER_SECOND).astype(np.float32),
        sight.upcoming(np.array(moments)),
        np.stack([nothing if label is None else label for label in labels]),
    )


__all__ = [
    "CONTROL",
    "EVENT",
    "IGNORED",
    "LOOKAHEAD_NOTES",
    "LOOKAHEAD_TICKS",
    "MIDDLE",
    "START",
    "UPCOMING_CHORDS",
    "GivenNotes",
    "NoteSequence",
    "given_row",
    "note_sequence",
]
