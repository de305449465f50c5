"""When dampers fall: keys, repeated keys, the pedal."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from testing_utils import assert_error

from melreformer_hf.processing.midi.notes import DRUMS, MidiNote
from melreformer_hf.processing.midi.sounding import SoundingNotes, sounding_notes


def releases(notes, pedal=()) -> list[float]:
    return sounding_notes(notes, pedal).release.tolist()


def note(onset, duration, pitch=60, velocity=64, instrument=0) -> MidiNote:
    return MidiNote(onset, duration, pitch, instrument, velocity)


def test_columns_are_seconds_in_the_order_of_onset_and_pitch():
    found = sounding_notes([note(150, 20, 64, 90), note(0, 50, 72, 3), note(0, 10, 48)])
    assert found.onset.tolist() == [0.0, 0.0, 1.5] and found.release.tolist() == [0.1, 0.5, 1.7]
    assert found.pitch.tolist() == [48, 72, 64] and found.velocity.tolist() == [64, 3, 90]
    assert found.onset.dtype == found.release.dtype == np.float64 and len(found) == 3


def test_the_pedal_holds_what_is_let_go_while_it_is_down():
    pedal = [(100, 200), (180, 260), (300, 310)]  # the first two are one
    assert releases([note(0, 100)], pedal) == [2.6]  # down at the very tick of the key's end
    assert releases([note(0, 99)], pedal) == [0.99]  # let go before the pedal
    assert releases([note(250, 10)], pedal) == [2.6]  # the end is excluded: the damper falls with the key
    assert releases([note(120, 400)], pedal) == [5.2]  # the key outlasts the pedal
    assert releases([note(290, 15)], pedal) == [3.1]


def test_a_key_is_down_once():
    assert releases([note(0, 300), note(100, 50)]) == [1.0, 1.5]
    assert releases([note(0, 300), note(100, 50, pitch=61)]) == [3.0, 1.5]
    # Under the pedal the string struck first sounds on.
    assert releases([note(0, 300), note(100, 50)], [(50, 400)]) == [4.0, 4.0]


def test_of_one_key_at_one_tick_the_loudest_note_counts():
    found = sounding_notes([note(5, 10, velocity=20), note(5, 40, velocity=90), note(5, 80, velocity=30)])
    assert found.velocity.tolist() == [90] and found.release.tolist() == [0.45]


def test_unknown_durations_count_as_a_quarter_second_and_drums_are_left_out():
    assert releases([note(100, None), note(0, 10, instrument=DRUMS)]) == [1.25]


def test_no_notes():
    empty = sounding_notes([], [(0, 10)])
    assert len(empty) == 0 and empty.pitch.dtype == np.int64
    assert len(SoundingNotes.none()) == 0


def test_columns_are_chosen_joined_and_cast():
    notes = sounding_notes([note(0, 10, 40), note(0, 20, 50), note(0, 30, 60)])
    high = notes.where(notes.pitch > 45)
    assert high.pitch.tolist() == [50, 60] and high.release.tolist() == [0.2, 0.3]
    assert high.joined(notes).pitch.tolist() == [50, 60, 40, 50, 60]
    tensors = SoundingNotes(*(torch.tensor(column) for column in ([0.5], [float("inf")], [60], [64.0])))
    arrays = tensors.as_arrays()
    assert arrays.onset.dtype == np.float64 and arrays.velocity.dtype == np.int64 and arrays.release[0] == np.inf


def test_columns_of_different_lengths_are_refused():
    with pytest.raises(ValueError) as error:
        SoundingNotes(np.zeros(2), np.zeros(2), np.zeros(3), np.zeros(2))
    assert_error(error, "'pitch': (3,)", "(note,)")
