"""Statistics of notes, computed by hand; distances that know like from unlike."""

from __future__ import annotations

import math

import numpy as np
import pytest

from melreformer_hf.metrics.notes import (
    INTERVAL_EDGES,
    STATISTICS,
    inter_onset_histogram,
    key_correlations,
    key_stability,
    note_density,
    note_polyphony,
    note_statistics,
    note_statistics_distance,
    pitch_class_entropy,
    pitch_class_histogram,
    wasserstein_distance,
)
from melreformer_hf.processing.midi.notes import DRUMS, MidiNote

DRUM = MidiNote(0, 100, 36, DRUMS, 64)
C_MAJOR, G_FLAT_MAJOR = (60, 62, 64, 65, 67, 69, 71), (66, 68, 70, 71, 73, 75, 77)


def notes(*rows) -> list[MidiNote]:
    """(onset, duration, pitch) in ticks."""
    return [MidiNote(onset, duration, pitch, 0, 64) for onset, duration, pitch in rows]


def scale(pitches, start: int, count: int, first: int = 0) -> list[MidiNote]:
    return notes(*((start + 25 * index, 25, pitches[(first + index) % len(pitches)]) for index in range(count)))


def test_density_and_polyphony():
    piece = [*notes((0, 100, 60), (100, 300, 64), (400, 10, 67)), DRUM, MidiNote(200, None, 70, 0, 64)]
    assert note_density(piece, 4.0) == 3 / 4  # what begins at the end and drums do not count
    assert note_polyphony(piece, 4.0) == pytest.approx((1 + 3 + 0.25) / 4)
    assert note_polyphony(piece, 2.0) == pytest.approx((1 + 1) / 2)  # cut at the end
    assert note_density([], 3.0) == note_polyphony([], 3.0) == 0


def test_intervals_between_onsets_are_those_between_chords():
    assert INTERVAL_EDGES[[0, 2, 16]].tolist() == pytest.approx([0.03, 0.06, 7.68])
    #                       one chord            3 ticks later     6 ticks     very long
    piece = notes((0, 5, 60), (1, 5, 64), (2, 5, 67), (3, 5, 70), (9, 5, 60), (2000, 5, 60))
    counts = inter_onset_histogram(piece, 30.0)
    assert counts.sum() == 3 and counts[0] == 1 and counts[2] == 1 and counts[15] == 1
    assert inter_onset_histogram(piece[:3], 30.0).sum() == 0


def test_pitch_classes_count_as_long_as_they_are_held():
    piece = notes((0, 100, 60), (0, 200, 72), (100, 100, 67))
    assert pitch_class_histogram(piece, 2.0)[[0, 7]].tolist() == pytest.approx([3.0, 1.0])
    assert pitch_class_histogram(piece, 2.0, 0.5, 1.25)[[0, 7]].tolist() == pytest.approx([0.5 + 0.75, 0.25])
    assert pitch_class_entropy(piece, 2.0) == pytest.approx(-(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25)))
    assert pitch_class_entropy(notes(*((0, 10, pitch) for pitch in range(12))), 1.0) == pytest.approx(math.log2(12))
    assert math.isnan(pitch_class_entropy([DRUM], 1.0))


def test_the_key_of_a_profile_is_its_own():
    for mode, profile in enumerate(((6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88),)):
        for tonic in (0, 7):
            found = key_correlations(np.roll(profile, tonic))
            assert np.unravel_index(found.argmax(), (2, 12)) == (mode, tonic)
            assert found.max() == pytest.approx(1.0)
    minor = (6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17)
    assert np.unravel_index(key_correlations(np.roll(minor, 9)).argmax(), (2, 12)) == (1, 9)
    assert (key_correlations(np.ones(12)) == 0).all()


def test_keys_that_wander_are_less_stable():
    steady = scale(C_MAJOR, 0, 128)
    wandering = [*scale(C_MAJOR, 0, 64), *scale(G_FLAT_MAJOR, 1600, 64)]
    chromatic = scale(tuple(range(60, 72)), 0, 128)
    values = [key_stability(piece, 32.0) for piece in (steady, wandering, chromatic)]
    assert values[0] > 0.6 and values[1] < values[0] - 0.3 and values[2] < values[0] - 0.3
    assert math.isnan(key_stability([], 32.0))
    # One window is the whole: the correlation with the profile of its own key.
    whole = key_correlations(pitch_class_histogram(steady, 32.0)).max()
    assert key_stability(steady, 32.0, window=64.0) == pytest.approx(whole)


def test_wasserstein_distance_is_how_far_values_move():
    assert wasserstein_distance(np.array([0.0, 1.0]), np.array([3.0, 2.0])) == pytest.approx(2.0)
    assert wasserstein_distance(np.array([1.0]), np.array([0.0, 4.0])) == pytest.approx((1 + 3) / 2)
    assert wasserstein_distance(np.array([1.0, 5.0]), np.array([5.0, 1.0])) == 0
    with pytest.raises(ValueError, match="second"):
        wasserstein_distance(np.ones(1), np.ones(0))


def test_distances_of_sets():
    slow = [note_statistics(scale(C_MAJOR, 0, 40, first), 20.0) for first in range(4)]
    also = [note_statistics(scale(C_MAJOR, 0, 40, first), 20.0) for first in (1, 0, 3, 2)]
    assert set(note_statistics_distance(slow, also)) == set(STATISTICS)
    assert all(value == pytest.approx(0, abs=1e-9) for value in note_statistics_distance(slow, also).values())
    fast = [
        note_statistics([note._replace(onset=note.onset // 2) for note in scale(C_MAJOR, 0, 40, first)], 10.0)
        for first in range(4)
    ]
    apart = note_statistics_distance(slow, fast)
    assert apart["density"] == pytest.approx(2.0) and apart["polyphony"] == pytest.approx(0.5)
    assert apart["inter_onset"] == pytest.approx(1.0) and apart["pitch_class_entropy"] == pytest.approx(0)


def test_excerpts_without_notes_count_where_they_can():
    some, empty = note_statistics(scale(C_MAJOR, 0, 40), 10.0), note_statistics([], 10.0)
    apart = note_statistics_distance([some, empty], [some])
    assert apart["density"] == pytest.approx(2.0) and apart["key_stability"] == pytest.approx(0)
    with pytest.raises(ValueError, match="two onsets"):
        note_statistics_distance([empty], [some])


@pytest.mark.parametrize("seconds", (0, -1, math.inf, math.nan))
def test_excerpts_have_a_length(seconds):
    with pytest.raises(ValueError, match="seconds"):
        note_statistics(scale(C_MAJOR, 0, 4), seconds)
    with pytest.raises(ValueError, match="window"):
        key_stability(scale(C_MAJOR, 0, 4), 1.0, window=0)
