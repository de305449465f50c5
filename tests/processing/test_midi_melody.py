"""The melody is what nothing higher covers."""

from __future__ import annotations

import numpy as np
import pytest

from melreformer_hf.processing.midi.melody import melody_notes


@pytest.mark.parametrize(
    "notes, melody",
    (
        ([(0, 60, 10), (0, 64, 10), (0, 67, 10)], [False, False, True]),  # a chord
        (
            [(0, 72, 50), (10, 60, 5), (20, 64, 5), (50, 74, 5)],
            [True, False, False, True],
        ),  # broken chord below a held note
        ([(0, 60, 50), (5, 72, 50)], [False, True]),  # a chord that is spread by 50 ms
        ([(0, 60, 50), (6, 72, 50)], [True, True]),  # later: another onset
        ([(0, 67, 10), (10, 60, 10)], [True, True]),  # a fifth down once the key is up
        ([(0, 68, 10), (10, 60, 10)], [True, False]),  # farther down: another voice
        ([(0, 68, 10), (109, 60, 10)], [True, False]),
        ([(0, 68, 10), (110, 60, 10)], [True, True]),  # a second of silence later
        ([], []),
    ),
)
def test_melody(notes, melody):
    onsets, pitches, durations = np.array(notes, dtype=np.int64).reshape(-1, 3).T
    assert melody_notes(onsets, pitches, durations).tolist() == melody
