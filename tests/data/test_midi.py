"""Training rows of MIDI tokens: which pieces, which variants, what a row looks like."""

from __future__ import annotations

import numpy as np
import pytest

from melreformer_hf.data.midi import RowCounts, arrival_rows, augment, split_spans, why_unsuitable
from melreformer_hf.processing.midi.arrival import SEPARATOR, count_instruments, notes_to_events, triples
from melreformer_hf.processing.midi.notes import MidiNote
from melreformer_hf.processing.midi.vocabulary import ARRIVAL


def piece(count: int = 400, spacing: int = 12, instruments: int = 3) -> list[MidiNote]:
    return [MidiNote(spacing * index, 10, 40 + index % 40, index % instruments, 64) for index in range(count)]


@pytest.mark.parametrize(
    ("notes", "reason"),
    [
        (piece(), None),
        (piece(count=99), "short"),
        (piece(spacing=1), "short"),
        (piece(spacing=2000), "long"),
        (piece(instruments=17), "crowded"),
        (piece(instruments=16), None),
    ],
)
def test_suitable_pieces(notes, reason):
    assert why_unsuitable(notes) == reason
    counts = RowCounts()
    rows = list(arrival_rows([notes], counts=counts))
    assert bool(rows) == (reason is None) and counts.rows == len(rows)
    assert [counts.short, counts.long, counts.crowded] == [reason == name for name in ("short", "long", "crowded")]


@pytest.mark.parametrize(
    ("notes", "reason"),
    [
        (piece(count=100), None),
        (piece(count=101, spacing=10), None),  # the last onset after exactly 10 s
        (piece(count=100, spacing=10), "short"),
        (piece(count=101, spacing=3600), None),  # after exactly an hour
        (piece(count=101, spacing=3601), "long"),
    ],
)
def test_borders_of_suitable_pieces(notes, reason):
    assert why_unsuitable(notes) == reason


def test_rows_of_100_seconds_are_left_out_and_counted():
    """341 events, 58 rests and the three separators among them: 340 notes 30 ticks apart span 101.7 s, 29 ticks 98.3."""
    for spacing, rows, left_out in ((30, 0, 1), (29, 1, 0)):
        counts = RowCounts()
        made = list(arrival_rows([piece(count=341, spacing=spacing)], counts=counts))
        assert (len(made), counts.rows, counts.inexpressible) == (rows, rows, left_out)


def test_rests_truncations_and_rows_are_counted():
    late = [MidiNote(399 * 12 + 550, 1500, 60, 0, 64)]  # after five rests of a second each, and cut to 9.99 s
    counts = RowCounts()
    rows = list(arrival_rows([piece() + late, piece()], counts=counts, rest=True))
    assert (counts.rests, counts.truncations, counts.rows) == (5, 1, len(rows))
    assert sum(row[3::3].count(ARRIVAL.first["rest"]) for row in rows) == 5


def test_rows():
    pieces = [piece(), piece(spacing=13)]
    rows = list(arrival_rows(pieces, num_variants=10, seed=1))
    flags = [ARRIVAL.first["autoregress"], ARRIVAL.first["anticipate"]]
    assert rows[0][0] == flags[0] and {row[0] for row in rows} == set(flags)
    assert rows == list(arrival_rows(pieces, num_variants=10, seed=1))
    assert rows != list(arrival_rows(pieces, num_variants=10, seed=2))
    for row in rows:
        assert len(row) == 1024 and max(row) < ARRIVAL.size
        for event in triples(row[1:]):
            names = tuple(ARRIVAL.locate(number)[0].removeprefix("control_") for number in event)
            assert names in {("time", "duration", "note"), ("time", "duration", "rest"), ("separator",) * 3}
    assert list(triples(rows[0][1:]))[0] == (SEPARATOR,) * 3


def test_variants_keep_every_note():
    events, _ = notes_to_events(piece())
    random = np.random.RandomState(0)
    for index in range(10):
        remaining, controls = augment(events, index, random)
        assert len(remaining) + len(controls) == len(events)
        assert bool(controls) == (index > 0)
        if index >= 6:
            assert not set(count_instruments(remaining)) & set(count_instruments(controls))
    alone, _ = notes_to_events(piece(instruments=1))
    assert augment(alone, 9, random) == (alone, [])


def test_spans_are_five_seconds_long():
    events, _ = notes_to_events(piece(count=6000, spacing=10))
    _, controls = split_spans(events, 0.05, np.random.RandomState(0))
    times = [time - ARRIVAL.first["control_time"] for time, _, _ in triples(controls)]
    gaps = [index for index in range(1, len(times)) if times[index] - times[index - 1] > 10]
    spans = np.split(np.array(times), gaps)[1:-1]
    assert len(spans) > 5
    # Spans that follow each other at once make one of several times five seconds.
    assert all((span[-1] - span[0] + 10) % 500 == 0 for span in spans)
