"""Attributes of notes: every row is a note, times stay true over a piece, pedal and velocity come back."""

from __future__ import annotations

import numpy as np
import pytest

from melreformer_hf.processing.midi.attributes import (
    DURATION_TICKS,
    END,
    MAX_TICKS,
    TIME_TICKS,
    VOCAB_SIZES,
    attributes_of_notes,
    nearest_step,
    notes_of_attributes,
    pedal_of_attributes,
)
from melreformer_hf.processing.midi.notes import MidiNote, check_notes


def scale(count: int, gap: int) -> list[MidiNote]:
    return [MidiNote(index * gap, gap, 40 + index % 40, 0, 3 + index % 120) for index in range(count)]


def test_tables_are_exact_where_rhythm_is_heard_and_within_their_share_beyond():
    assert TIME_TICKS[:40].tolist() == list(range(40)) and DURATION_TICKS[:20].tolist() == list(range(20))
    for table, exact, share in ((TIME_TICKS, 40, 0.035), (DURATION_TICKS, 20, 0.055)):
        assert table[-1] == MAX_TICKS and (np.diff(table) > 0).all()
        ticks = np.arange(exact, MAX_TICKS)
        assert (np.abs(table[nearest_step(ticks, table)] - ticks) <= share * ticks + 0.5).all()
    assert VOCAB_SIZES == (len(TIME_TICKS) + 1, 128, len(DURATION_TICKS), 32, 2) and len(TIME_TICKS) == END


def test_ties_go_to_the_smaller_step_and_the_last_step_holds_what_lies_beyond():
    table = np.array([0, 1, 3, 9])
    assert nearest_step(np.array([0, 1, 2, 3, 6, 7, 50]), table).tolist() == [0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("gap", (7, 53, 131, 977))
def test_errors_of_times_do_not_add_up(gap):
    notes = scale(300, gap)
    again = notes_of_attributes(attributes_of_notes(notes))
    drift = [abs(new.onset - old.onset) for new, old in zip(again, notes, strict=True)]
    assert max(drift) <= 0.035 * gap + 0.5


def test_a_silence_longer_than_the_table_is_cut_and_the_rest_stays_in_time():
    notes = [
        MidiNote(0, 10, 60, 0, 64),
        MidiNote(5 * MAX_TICKS, 10, 62, 0, 64),
        MidiNote(5 * MAX_TICKS + 30, 10, 64, 0, 64),
    ]
    assert [note.onset for note in notes_of_attributes(attributes_of_notes(notes))] == [0, MAX_TICKS, MAX_TICKS + 30]


def test_rows_of_any_values_in_range_are_valid_notes():
    random = np.random.default_rng(0)
    sizes = (END, *VOCAB_SIZES[1:])
    rows = np.stack([random.integers(size, size=500) for size in sizes], axis=1)
    notes = check_notes(notes_of_attributes(rows, start=100, instrument=5))
    assert notes[0].onset == 100 + TIME_TICKS[rows[0, 0]]
    assert all(note.duration >= 1 and note.instrument == 5 for note in notes)
    back = attributes_of_notes(notes)
    assert (back[:, 3] == rows[np.lexsort((rows[:, 1], [note.onset for note in notes]))][:, 3]).all()


def test_values_outside_their_range_are_named():
    row = [[0, 60, 5, 16, 0]]
    for column, name in enumerate(("time", "pitch", "duration", "velocity", "pedal")):
        bad = np.array(row)
        bad[0, column] = END if name == "time" else VOCAB_SIZES[column]
        with pytest.raises(ValueError, match=rf"rows\[0\]: {name} must be in 0\.\..*got {bad[0, column]}"):
            notes_of_attributes(bad)


def test_pedal_is_told_at_onsets_and_comes_back_between_them():
    notes = [MidiNote(tick, 5, 60, 0, 64) for tick in (0, 20, 39, 40, 60)]
    rows = attributes_of_notes(notes, pedal=[(20, 40), (60, 90)])
    assert rows[:, 4].tolist() == [0, 1, 1, 0, 1]
    assert pedal_of_attributes(rows) == [(20, 40), (60, 61)]


def test_unknown_durations_count_as_250_ms():
    assert attributes_of_notes([MidiNote(0, None, 60, 0, 64)])[0, 2] == nearest_step(25, DURATION_TICKS)
