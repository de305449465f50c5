"""Scores of transcriptions, counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from melreformer_hf.metrics import mean_scores, note_rows, transcription_scores
from melreformer_hf.nn.sounding import SoundingNotes
from melreformer_hf.processing.midi.notes import DRUMS, MidiNote

pytest.importorskip("mir_eval")

PLAYED = np.array([[0.0, 1.0, 60, 100], [1.0, 2.0, 64, 80], [2.0, 3.0, 67, 60], [3.0, 4.0, 72, 40]])


def changed(**columns: float) -> np.ndarray:
    """The second note otherwise."""
    rows = PLAYED.copy()
    for name, value in columns.items():
        rows[1, ("onset", "end", "pitch", "velocity").index(name)] = value
    return rows


def f1(hits: int, heard: int, played: int = 4) -> float:
    return 2 * hits / (heard + played)


def test_what_was_played_is_perfect():
    scores = transcription_scores(PLAYED, PLAYED)
    names = [f"{kind}_{part}" for kind in ("onset", "offset", "velocity", "offset_velocity") for part in ("f1",)]
    assert len(scores) == 12 and all(scores[name] == 1 for name in names)


@pytest.mark.parametrize(
    "heard, onset, offset, velocity",
    (
        (changed(onset=1.049), 4, 4, 4),
        (changed(onset=1.051), 3, 3, 3),
        (changed(pitch=65), 3, 3, 3),
        (changed(end=2.19), 4, 4, 4),  # a fifth of its second
        (changed(end=2.21), 4, 3, 4),
        (changed(velocity=84), 4, 4, 4),
        (changed(velocity=120), 4, 4, 2),
    ),
)
def test_what_counts(heard, onset, offset, velocity):
    scores = transcription_scores(heard, PLAYED)
    assert scores["onset_f1"] == pytest.approx(f1(onset, 4))
    assert scores["offset_f1"] == pytest.approx(f1(offset, 4))
    if velocity == 4:
        assert scores["velocity_f1"] == pytest.approx(1)
    else:
        assert scores["velocity_f1"] < 1
    assert scores["offset_velocity_f1"] <= min(scores["offset_f1"], scores["velocity_f1"])


def test_velocities_are_compared_after_the_best_linear_fit():
    softer = PLAYED.copy()
    softer[:, 3] = PLAYED[:, 3] * 0.5 + 7
    assert transcription_scores(softer, PLAYED)["velocity_f1"] == 1


def test_precision_and_recall():
    more = np.concatenate([PLAYED, [[5.0, 6.0, 40, 50]]])
    scores = transcription_scores(more, PLAYED)
    assert (scores["onset_precision"], scores["onset_recall"]) == (0.8, 1.0)
    assert scores["onset_f1"] == pytest.approx(f1(4, 5))
    scores = transcription_scores(PLAYED[:3], PLAYED)
    assert (scores["onset_precision"], scores["onset_recall"]) == (1.0, 0.75)


def test_a_note_is_heard_once():
    twice = np.concatenate([PLAYED, PLAYED[:1]])
    assert transcription_scores(twice, PLAYED)["onset_precision"] == 0.8


def test_the_tolerance():
    late = PLAYED + np.array([0.08, 0.08, 0, 0])
    assert transcription_scores(late, PLAYED)["onset_f1"] == 0
    assert transcription_scores(late, PLAYED, onset_tolerance_in_s=0.1)["onset_f1"] == 1


def test_nothing():
    none = np.zeros((0, 4))
    assert set(transcription_scores(none, none).values()) == {1.0}
    assert set(transcription_scores(none, PLAYED).values()) == {0.0}
    assert set(transcription_scores(PLAYED, none).values()) == {0.0}


def test_notes_of_every_kind_are_the_same_rows():
    notes = [
        MidiNote(0, 100, 60, 0, 100),
        MidiNote(100, None, 64, 3, 80),
        MidiNote(50, 10, 36, DRUMS, 9),
        MidiNote(7, 0, 1, 0, 1),
    ]
    expected = [[0.0, 1.0, 60, 100], [1.0, 1.25, 64, 80], [0.07, 0.071, 1, 1]]
    np.testing.assert_allclose(note_rows(notes), expected)
    columns = [np.array(column) for column in zip(*expected, strict=True)]
    np.testing.assert_allclose(note_rows(SoundingNotes(*columns)), expected)
    assert note_rows([]).shape == (0, 4)
    unknown = SoundingNotes(np.zeros(1), np.array([np.inf]), np.array([60]), np.array([60]))
    with pytest.raises(ValueError, match="1 values that are not finite"):
        note_rows(unknown)
    with pytest.raises(ValueError, match=r"got \(2, 3\)"):
        note_rows(np.zeros((2, 3)))


def test_means():
    assert mean_scores([{"a": 1.0, "b": 0.0}, {"a": 0.5, "b": 1.0}]) == {"a": 0.75, "b": 0.5}
    with pytest.raises(ValueError, match="at least one piece"):
        mean_scores([])
