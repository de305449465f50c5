"""When the pedal is down."""

from __future__ import annotations

import io

import mido
import numpy as np

from melreformer_hf.processing.midi.pedal import merge_intervals, pedal_at, read_pedal


def file_of(*messages: tuple[int, int, int, int]) -> bytes:
    """A file with 50 ticks a beat (a tick is 10 ms) of (tick, channel, controller, value)."""
    track, before = mido.MidiTrack(), 0
    for tick, channel, control, value in messages:
        track.append(mido.Message("control_change", channel=channel, control=control, value=value, time=tick - before))
        before = tick
    midi, buffer = mido.MidiFile(ticks_per_beat=50), io.BytesIO()
    midi.tracks.append(track)
    midi.save(file=buffer)
    return buffer.getvalue()


def test_the_pedal_is_down_from_64_on_and_repeated_values_change_nothing():
    content = file_of((10, 0, 64, 63), (20, 0, 64, 64), (30, 0, 64, 127), (40, 0, 64, 63), (50, 0, 64, 0))
    assert read_pedal(content) == [(20, 40)]


def test_other_controllers_are_other_things_and_channels_add_up():
    content = file_of(
        (0, 0, 67, 127), (5, 0, 64, 127), (8, 1, 64, 127), (10, 0, 64, 0), (15, 1, 64, 0), (20, 0, 64, 90)
    )
    assert read_pedal(content) == [(5, 15)]  # the last one ends with the file, at its own beginning


def test_a_pedal_left_down_ends_with_the_file():
    assert read_pedal(file_of((5, 0, 64, 127), (25, 0, 1, 0))) == [(5, 25)]


def test_intervals_are_joined_in_order():
    assert merge_intervals([(10, 20), (0, 5), (20, 30), (40, 40), (12, 15)]) == [(0, 5), (10, 30)]


def test_onsets_know_the_pedal_its_end_excluded():
    onsets = np.array([0, 5, 9, 10, 15, 20, 99])
    assert pedal_at(onsets, [(15, 21), (5, 10)]).tolist() == [False, True, True, False, True, True, False]
    assert not pedal_at(onsets, []).any() and pedal_at(np.array([]), [(1, 2)]).shape == (0,)
