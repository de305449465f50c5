"""Interarrival tokens, written and read by hand."""

from __future__ import annotations

from melreformer_hf.processing.midi.interarrival import changes_to_notes, decode_changes, notes_to_changes
from melreformer_hf.processing.midi.notes import MidiChange, MidiNote
from melreformer_hf.processing.midi.vocabulary import INTERARRIVAL

# 1000 waits, then 129 instruments x 128 pitches of starts, as many of ends, and the separator.
ON, OFF, SEPARATOR = 1000, 1000 + 129 * 128, 1000 + 2 * 129 * 128


def test_blocks_lie_where_the_original_has_them():
    assert dict(INTERARRIVAL.first) == {"wait": 0, "on": ON, "off": OFF, "separator": SEPARATOR}


def test_decoding_by_hand():
    piano, drum = 60, 128 * 128 + 38
    tokens = [7, ON + piano, 50, ON + drum, SEPARATOR, 25, OFF + piano, 999, OFF + drum]
    assert decode_changes(tokens) == [
        MidiChange(7, True, 60, 0, 96),
        MidiChange(57, True, 38, 128, 96),
        MidiChange(82, False, 60, 0, 96),
        MidiChange(1081, False, 38, 128, 96),
    ]
    assert changes_to_notes(decode_changes(tokens)) == [MidiNote(7, 75, 60, 0, 96), MidiNote(57, 1024, 38, 128, 96)]


def test_ends_belong_to_the_earliest_open_note_of_their_pitch_and_instrument():
    tokens = [ON + 60, 10, ON + 60, 10, ON + 128 + 60, OFF + 61, 10, OFF + 60, 10, OFF + 60, OFF + 60, ON + 62]
    assert changes_to_notes(decode_changes(tokens)) == [
        MidiNote(0, 30, 60, 0, 96),
        MidiNote(10, 30, 60, 0, 96),
        MidiNote(20, None, 60, 1, 96),
        MidiNote(40, None, 62, 0, 96),
    ]


def test_encoding_by_hand():
    notes = [MidiNote(5, 20, 60, 0, 80), MidiNote(5, 2000, 64, 0, 80), MidiNote(25, 10, 60, 0, 80)]
    tokens = [5, ON + 60, ON + 64, 20, OFF + 60, ON + 60, 10, OFF + 60, 999, OFF + 64]
    assert notes_to_changes(notes) == (tokens, 1)  # one wait of 1970 ticks was cut
