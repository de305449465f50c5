"""Probabilities to notes: places between steps, ends of three kinds, thresholds, streams."""

from __future__ import annotations

import numpy as np
import pytest

from melreformer_hf.models.note_ear.configuration_note_ear import NoteEarConfig
from melreformer_hf.models.note_ear.decoding_note_ear import FRAME, OFFSET, ONSET, VELOCITY, NoteDecoder, find_peaks

# 100 steps per second: a step is a tick.
MEL = {"sampling_rate": 25600, "hop_length": 128}
CONFIG = NoteEarConfig.preset("test", mel=MEL, num_keys=3, lowest_pitch=60)


def triangle(place: float, steps: int = 60, reach: float = 2.0) -> np.ndarray:
    return np.clip(1 - np.abs(np.arange(steps) - place) / reach, 0, 1)


def heard(*notes: tuple[int, float, float, float], steps: int = 60) -> np.ndarray:
    """(step, 4, key) of notes (key, onset, offset, velocity), places in steps."""
    made = np.zeros((steps, 4, 3), dtype=np.float32)
    for key, onset, offset, velocity in notes:
        made[:, ONSET, key] = np.maximum(made[:, ONSET, key], triangle(onset, steps))
        made[:, OFFSET, key] = np.maximum(made[:, OFFSET, key], triangle(offset, steps))
        inside = (np.arange(steps) >= onset) & (np.arange(steps) <= offset)
        made[inside, FRAME, key] = 0.9
        made[np.abs(np.arange(steps) - onset) < 2, VELOCITY, key] = velocity
    return made


def decode(values: np.ndarray, config: NoteEarConfig = CONFIG) -> list[tuple]:
    return [tuple(note) for note in NoteDecoder(config).feed(values, last=True)]


def test_the_clock():
    assert CONFIG.step_in_s == 0.01


@pytest.mark.parametrize("place", (7.0, 7.3, 7.5, 7.8, 12.49))
def test_peaks_lie_between_the_steps(place):
    padded = np.pad(triangle(place)[:, None], ((2, 2), (0, 0)))
    peaks, fractions = find_peaks(padded, 0.3)
    (found,) = np.flatnonzero(peaks[:, 0])
    assert found + fractions[found, 0] == pytest.approx(place, abs=1e-6)
    assert not find_peaks(padded, float(triangle(place).max()))[0].any()


def test_a_plateau_is_one_peak_and_the_higher_of_two_near_ones_wins():
    values = np.zeros((14, 2))
    values[5:7, 0] = 0.8
    values[[5, 7], 1] = 0.6, 0.7
    peaks, _ = find_peaks(values, 0.5)
    assert peaks.sum() == 2 and peaks[3, 0] and peaks[5, 1]


def test_a_note_is_what_was_played():
    # The middle of step 10.4 is at 10.9 ticks, that of 30.2 at 30.7.
    assert decode(heard((1, 10.4, 30.2, 0.5))) == [(11, 20, 61, 0, 64)]


def test_notes_end_where_they_are_not_heard_any_more():
    values = heard((0, 10, 30, 0.5))
    values[:, OFFSET] = 0
    assert decode(values) == [(10, 22, 60, 0, 64)]  # step 31, whose middle is at 31.5, is the first silent one
    values[:, FRAME] = 0
    assert decode(values) == [(10, 2, 60, 0, 64)]  # two steps after its onset, not before


def test_a_key_that_is_struck_again_ends_its_note():
    values = heard((2, 10, 20, 0.25), (2, 20, 40, 1.0))
    values[:, OFFSET] = 0
    assert decode(values) == [(10, 10, 62, 0, 32), (20, 22, 62, 0, 127)]
    values = heard((2, 10, 20, 0.25), (2, 20, 40, 1.0))  # with its end at the same place
    assert decode(values)[0] == (10, 10, 62, 0, 32)


def test_a_note_that_sounds_at_the_end_ends_there():
    assert decode(heard((0, 50, 80, 0.1))) == [(50, 10, 60, 0, 13)]


def test_velocities_stay_in_midi_s_range():
    assert [note[-1] for note in decode(heard((0, 10, 20, 0.0), (1, 10, 20, 1.0)))] == [1, 127]


@pytest.mark.parametrize("name", ("onset_threshold", "frame_threshold", "offset_threshold"))
def test_thresholds_mean_what_they_say(name):
    values = heard((0, 10, 30, 0.5))
    values[10, ONSET, 0], values[25, OFFSET, 0] = 0.55, 0.55
    values[20:24, FRAME, 0] = 0.45
    ends = {}
    for threshold in (0.4, 0.5, 0.6):
        others = {"onset_threshold": 0.5, "frame_threshold": 0.1, "offset_threshold": 0.7, name: threshold}
        made = decode(values, NoteEarConfig.preset("test", mel=MEL, num_keys=3, lowest_pitch=60, **others))
        ends[threshold] = [note[1] for note in made]
    expected = {
        # The neighbours of the onset are 0.5, so that only the threshold decides.
        "onset_threshold": {0.4: [20], 0.5: [20], 0.6: []},
        "frame_threshold": {0.4: [20], 0.5: [10], 0.6: [10]},
        "offset_threshold": {0.4: [16], 0.5: [16], 0.6: [20]},
    }
    assert ends == expected[name]


def test_streams_decode_as_the_whole():
    random = np.random.default_rng(0)
    values = random.random((200, 4, 3)).astype(np.float32)
    whole = decode(values)
    assert len(whole) > 30
    for size in (1, 2, 3, 7, 50):
        decoder, made = NoteDecoder(CONFIG), []
        for start in range(0, 200, size):
            made += decoder.feed(values[start : start + size])
            assert len(decoder._held) <= 4
        made += decoder.feed(values[:0], last=True)
        assert [tuple(note) for note in made] == whole


def test_nothing_heard_is_nothing_played():
    assert decode(np.zeros((0, 4, 3))) == [] and decode(np.zeros((9, 4, 3))) == []
