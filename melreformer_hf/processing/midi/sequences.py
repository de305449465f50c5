"""Notes as the positions of a sequence: those that are played, and among them those that are given.

A given note (a *control*: a note of the melody to accompany, or of what follows a gap) stands in the sequence before the
played notes that should know of it: as soon as the last played note comes within `LOOKAHEAD_TICKS` of it, as in the
Anticipatory Music Transformer (Thickstun et al., arXiv 2306.08620), and in any case when no later given note is in sight
yet. The second rule is ours: it replaces the original's rests, whose only purpose is that silence has positions too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from melreformer_hf.processing.midi.attributes import END, TIME_TICKS, nearest_step
from melreformer_hf.processing.midi.notes import TICKS_PER_SECOND

START, MIDDLE, EVENT, CONTROL = range(4)
LOOKAHEAD_TICKS = 5 * TICKS_PER_SECOND
IGNORED = -100


@dataclass
class NoteSequence:
    """Positions of a piece.

    Args:
        roles: (position,) int64: `START` or `MIDDLE` first, then `EVENT` and `CONTROL`.
        attributes: (position, 5) int64; zeros in the first position.
        seconds: (position,) float32 onsets.
        labels: (position, 5) int64: the note that is played next, `IGNORED` where the next position is a given one.
    """

    roles: np.ndarray
    attributes: np.ndarray
    seconds: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.roles)


class GivenNotes:
    """Hands out given notes in their order when they come into sight.

    Args:
        onsets: (note,) ticks, ascending.
    """

    def __init__(self, onsets: np.ndarray) -> None:
        self.onsets, self.shown = onsets, 0

    def due(self, now: float) -> Iterator[int]:
        """Indices of the notes that stand before the next played one, when the last one was at `now`."""
        while self.shown < len(self.onsets):
            onset = self.onsets[self.shown]
            latest = self.onsets[self.shown - 1] if self.shown else -np.inf
            # A chord comes into sight as a whole: what begins with the latest shown note is shown, too.
            if onset > now + LOOKAHEAD_TICKS and latest > now and onset > latest:
                return
            yield self.shown
            self.shown += 1


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
    sight = GivenNotes(onsets[controls])
    roles, rows = [START if begins else MIDDLE], [np.zeros(attributes.shape[1], dtype=np.int64)]
    ticks, labels, now = [0.0], [], 0.0

    def show_given() -> None:
        for index in sight.due(now):
            note = controls[index]
            labels.append(None)
            roles.append(CONTROL)
            rows.append(given_row(attributes[note], onsets[note], now))
            ticks.append(float(onsets[note]))

    for note in played:
        show_given()
        row = given_row(attributes[note], onsets[note], now)
        # The quantized onset, not the true one: the next time is counted from what was written, so errors do not add up.
        now = now + TIME_TICKS[row[0]] if row[0] < len(TIME_TICKS) - 1 else float(onsets[note])
        labels.append(row)
        roles.append(EVENT)
        rows.append(row)
        ticks.append(now)
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
        np.stack([nothing if label is None else label for label in labels]),
    )


__all__ = [
    "CONTROL",
    "EVENT",
    "IGNORED",
    "LOOKAHEAD_TICKS",
    "MIDDLE",
    "START",
    "GivenNotes",
    "NoteSequence",
    "given_row",
    "note_sequence",
]
