"""Notes and pedal in one file: what is written is read again, in an order that other players understand, too."""

from __future__ import annotations

import numpy as np
import pytest

from melreformer_hf.processing.midi.notes import DRUMS, MidiNote, midi_bytes, notes_to_midi, read_notes
from melreformer_hf.processing.midi.pedal import read_pedal
from melreformer_hf.processing.midi.scores import piece_to_midi


def test_notes_and_pedal_are_read_again():
    rng = np.random.default_rng(0)
    notes = [
        MidiNote(40 * index, int(rng.integers(1, 39)), int(rng.integers(21, 109)), int(rng.choice([0, 40, DRUMS])), 90)
        for index in range(100)
    ]
    pedal = [(0, 55), (200, 400), (401, 402), (3000, 5000)]  # the last one outlasts the notes
    content = midi_bytes(piece_to_midi(notes, pedal))
    assert sorted(read_notes(content)) == sorted(notes) and read_pedal(content) == pedal
    assert midi_bytes(piece_to_midi(notes)) == midi_bytes(notes_to_midi(notes))
    assert read_notes(midi_bytes(piece_to_midi([], pedal))) == []


def test_the_pedal_comes_before_the_notes_of_its_tick_and_after_the_program():
    track = piece_to_midi([MidiNote(0, 10, 60, 5, 80), MidiNote(10, 10, 62, 5, 80)], [(10, 20), (0, 5)]).tracks[0]
    told, tick = [], 0
    for message in track:
        tick += message.time
        told.append((tick, message.type, getattr(message, "value", None)))
    pedal = "control_change"
    assert told[:3] == [(0, "program_change", None), (0, pedal, 127), (0, "note_on", None)]
    assert told[3:] == [
        (5, pedal, 0),
        (10, pedal, 127),
        (10, "note_off", None),
        (10, "note_on", None),
        (20, pedal, 0),
        (20, "note_off", None),
    ]
    assert all(message.channel == track[0].channel for message in track)


def test_notes_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"notes\[0\].velocity"):
        piece_to_midi([MidiNote(0, 10, 60, 0, 0)])
