"""Arrival events worked out by hand: where notes come to lie, and which numbers mean nothing."""

from __future__ import annotations

import pytest

from melreformer_hf.processing.midi.arrival import (
    CONTROL,
    DURATION,
    NOTE,
    REST,
    SEPARATOR,
    clip_events,
    earliest_tick,
    events_to_notes,
    latest_tick,
    longest_gap,
    pad_events,
)

BREAK = [SEPARATOR] * 3


def event(time: int, duration: int, pitch: int, instrument: int = 0) -> list[int]:
    return [time, DURATION + duration, NOTE + 128 * instrument + pitch]


def test_what_follows_a_separator_begins_when_all_notes_have_ended():
    pieces = [*event(10, 200, 60), *event(50, 20, 62)], event(5, 7, 64), event(0, 1, 65)
    notes = events_to_notes([*pieces[0], *BREAK, *pieces[1], *BREAK, *pieces[2]])
    found = [(note.onset, note.duration, note.pitch) for note in notes]
    assert found == [(10, 200, 60), (50, 20, 62), (210 + 5, 7, 64), (210 + 12, 1, 65)]


def test_the_outermost_numbers_of_every_block_are_notes_and_the_next_are_not():
    notes = events_to_notes([0, DURATION, NOTE, 0, NOTE - 1, REST - 1])
    assert [(note.duration, note.instrument, note.pitch) for note in notes] == [(0, 0, 0), (999, 128, 127)]
    for wrong in ([-1, DURATION, NOTE], [0, DURATION - 1, NOTE], [0, NOTE, NOTE], [0, DURATION, NOTE - 1]):
        with pytest.raises(ValueError, match="event 0 must be a time, a duration and a note"):
            events_to_notes(wrong)


def test_times_of_events():
    events = [*event(30, 5, 60), *event(70, 5, 60), *BREAK, *event(20, 5, 60)]
    assert (earliest_tick(events), latest_tick(events)) == (30, 70)
    assert earliest_tick([]) == latest_tick([]) == earliest_tick([*BREAK, *event(3, 1, 60)]) == 0
    assert longest_gap(events[:6]) == 40 and longest_gap(events[:3]) == 30


def test_rests_fill_every_gap_longer_than_the_density():
    notes = [*event(100, 5, 60), *event(301, 5, 60)]
    times = [time for time in pad_events(notes, 520, density=100)[::3]]
    assert times == [100, 200, 300, 301, 401, 501]
    assert pad_events(notes, density=100)[::3] == [100, 200, 300, 301]


def test_clipping_keeps_what_begins_inside_and_cuts_what_sounds_beyond():
    before, first, last, after = (event(time, 10, 60) for time in (99, 100, 195, 201))
    control = [number + CONTROL for number in event(200, 30, 61)]
    everything = [*before, *first, *last, *control, *after]
    assert clip_events(everything, 100, 200, cut_durations=False) == [*first, *last, *control]
    cut = [number + CONTROL for number in event(200, 0, 61)]
    assert clip_events(everything, 100, 200) == [*first, *event(195, 5, 60), *cut]
