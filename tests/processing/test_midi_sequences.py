"""Given notes come into sight when they should; labels are the notes that are played next."""

from __future__ import annotations

import numpy as np

from melreformer_hf.processing.midi.attributes import END, TIME_TICKS, attributes_of_notes
from melreformer_hf.processing.midi.notes import MidiNote
from melreformer_hf.processing.midi.sequences import (
    CONTROL,
    EVENT,
    IGNORED,
    LOOKAHEAD_TICKS,
    MIDDLE,
    START,
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


def test_given_notes_come_into_sight_five_seconds_ahead():
    late = LOOKAHEAD_TICKS
    # 0: played; 1: the next given note, always in sight; 2: given, in sight once the played note at 200 has sounded
    made = sequence([0, 150, 200, 150 + late, 300 + late], given=(1, 3))
    assert made.roles.tolist() == [START, CONTROL, EVENT, EVENT, CONTROL, EVENT]
    assert made.attributes[1, 0] == np.searchsorted(TIME_TICKS, 150 - 5)  # nearest to 150 before anything is played
    assert made.seconds[1] == 1.5 and made.seconds[4] == np.float32((150 + late) / 100)


def test_the_next_given_note_is_in_sight_however_far_and_with_its_whole_chord():
    far = 10 * LOOKAHEAD_TICKS
    made = sequence([0, 10, far, far, far + 900], given=(2, 3, 4))
    assert made.roles.tolist() == [START, CONTROL, CONTROL, EVENT, EVENT]
    assert made.attributes[1:3, 1].tolist() == [32, 33]


def test_positions_before_given_notes_learn_nothing():
    made = sequence([0, 150, 200], given=(1,))
    learned = made.labels[:, 0] != IGNORED
    assert learned.tolist() == [False, True, True, True]
    assert made.labels[1, 1] == 30 and made.labels[2, 1] == 32


def test_everything_given_leaves_only_the_end_to_learn():
    made = sequence([0, 10, 20], given=(0, 1, 2))
    assert made.roles.tolist() == [START, CONTROL, CONTROL, CONTROL]
    assert made.labels[-1, 0] == END and (made.labels[:-1] == IGNORED).all()


def test_times_are_counted_from_what_was_written():
    onsets = np.cumsum([0] + [97] * 60)
    made = sequence(onsets)
    assert np.abs(made.seconds[1:] * 100 - onsets).max() <= 3
