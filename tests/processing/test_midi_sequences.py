"""Given notes come into sight when they should; labels are the notes that are played next."""

from __future__ import annotations

import numpy as np

from melreformer_hf.processing.midi.attributes import END, attributes_of_notes
from melreformer_hf.processing.midi.notes import MidiNote
from melreformer_hf.processing.midi.sequences import (
    CONTROL,
    EVENT,
    IGNORED,
    LOOKAHEAD_BATCH,
    LOOKAHEAD_NOTES,
    MIDDLE,
    START,
    GivenNotes,
    note_sequence,
)


def sequence(onsets, given=(), begins=True, ends=True):
    notes = [MidiNote(onset, 10, 30 + index, 0, 64) for index, onset in enumerate(onsets)]
    flags = np.zeros(len(onsets), dtype=bool)
    flags[list(given)] = True
    return note_sequence(attributes_of_notes(notes), np.array(onsets), flags, begins, ends)


def test_without_given_notes_every_position_learns_the_next_note_and_the_last_one_the_end():
    made = sequence([0, 10, 30])
    assert made.roles.tolist() == [START, EVENT, EVENT, EVENT]
    assert made.labels[:, 0].tolist() == [0, 10, 20, END]
    assert made.labels[:3, 1].tolist() == made.attributes[1:, 1].tolist() == [30, 31, 32]
    assert made.labels[3, 1:].tolist() == [IGNORED] * 4
    np.testing.assert_allclose(made.seconds, [0, 0, 0.1, 0.3], atol=1e-6)


def test_a_part_of_a_piece_neither_begins_nor_ends_it():
    made = sequence([0, 10], begins=False, ends=False)
    assert made.roles[0] == MIDDLE and made.labels[-1].tolist() == [IGNORED] * 5


def test_given_notes_stand_in_front_of_the_played_note_with_which_they_come_into_sight():
    made = sequence([10, 30, *range(100, 100 + LOOKAHEAD_BATCH), 500], given=range(1, LOOKAHEAD_BATCH + 1))
    assert made.roles.tolist() == [*[CONTROL] * LOOKAHEAD_BATCH, START, EVENT, EVENT, EVENT]
    # Their time is that from the played note, here from the beginning, to their own onset.
    assert made.attributes[0, 0] == 30 and made.attributes[0, 1] == 31 and made.seconds[0] == np.float32(0.3)
    assert made.labels[LOOKAHEAD_BATCH, 1] == 30, "the mark's label is the first note that is played"


def shown(onsets, moments) -> list[list[int]]:
    given = GivenNotes(np.array(onsets), np.zeros(len(onsets), dtype=np.int64))
    return [list(given.due(now)) for now in moments]


def test_more_given_notes_come_into_sight_when_few_of_those_in_sight_are_still_to_come():
    onsets = [100 * index for index in range(1, 100)]
    left = LOOKAHEAD_BATCH - LOOKAHEAD_NOTES
    moments = [0, 0, 100 * left - 1, 100 * left, 100 * left + 1, 100 * (left + 1), 9000]
    first, *nothing, second, late = shown(onsets, moments)
    assert first == list(range(LOOKAHEAD_BATCH)) and nothing == [[]] * 4
    assert second == list(range(LOOKAHEAD_BATCH, 2 * LOOKAHEAD_BATCH))
    # All that sounded in the meantime, and as many as always ahead of it; the last ones are all there is.
    assert late == list(range(2 * LOOKAHEAD_BATCH, 99))
    assert shown(onsets, [0, 5000])[1] == list(range(LOOKAHEAD_BATCH, 50 + LOOKAHEAD_BATCH))


def test_a_chord_comes_into_sight_as_a_whole():
    onsets = [*range(LOOKAHEAD_BATCH - 1), 50, 50, 50, 60]
    assert shown(onsets, [-1]) == [list(range(LOOKAHEAD_BATCH + 2))]


def test_positions_of_given_notes_learn_nothing_and_played_ones_the_next_that_is_played():
    made = sequence([0, 150, 200], given=(1,))
    assert made.roles.tolist() == [CONTROL, START, EVENT, EVENT]
    assert (made.labels[:, 0] != IGNORED).tolist() == [False, True, True, True]
    assert made.labels[1, 1] == 30 and made.labels[2, 1] == 32 and made.labels[3, 0] == END


def test_everything_given_leaves_only_the_end_to_learn():
    made = sequence([0, 10, 20], given=(0, 1, 2))
    assert made.roles.tolist() == [CONTROL, CONTROL, CONTROL, START]
    assert made.labels[-1, 0] == END and (made.labels[:-1] == IGNORED).all()


def test_every_position_is_told_of_the_next_given_chords_as_they_are_from_there():
    made = sequence([0, 5, 20, 20, 30, 37, 50, 60], given=(2, 3, 5, 6))
    assert made.roles.tolist() == [*[CONTROL] * 4, START, EVENT, EVENT, EVENT, EVENT]
    # Chords at 20 (pitches 32 and 33), 37 (35) and 50 (36); moments 0 five times, then 0, 5, 30, 60.
    expected = [[21, 34, 38, 36]] * 6 + [[16, 34, 33, 36], [8, 36, 21, 37], [0, 0, 0, 0]]
    assert made.upcoming.tolist() == expected
    # What is played together with a chord has the very time that stands there.
    together = sequence([0, 25, 25], given=(2,))
    assert together.upcoming[2, 0] - 1 == together.labels[2, 0] == 25


def test_a_chord_that_sounds_is_no_longer_to_come():
    given = GivenNotes(np.array([10, 10, 30]), np.array([60, 64, 50]))
    assert given.upcoming(np.array([9.0, 10.0, 30.0])).tolist() == [[2, 65, 22, 51], [21, 51, 0, 0], [0, 0, 0, 0]]
    nothing = GivenNotes(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))
    assert nothing.upcoming(np.array([0.0])).tolist() == [[0, 0, 0, 0]]


def test_times_are_counted_from_what_was_written():
    onsets = np.cumsum([0] + [97] * 60)
    made = sequence(onsets)
    assert np.abs(made.seconds[1:] * 100 - onsets).max() <= 3
