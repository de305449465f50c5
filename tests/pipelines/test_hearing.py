"""What is known of a piece while it is written: complete, final, and no more than is heard."""

from __future__ import annotations

import math

import numpy as np
import pytest

from melreformer_hf.pipelines.hearing import score_end, score_snapshots, written_snapshots
from melreformer_hf.processing.midi.attributes import pedal_intervals
from melreformer_hf.processing.midi.notes import MidiNote
from melreformer_hf.processing.midi.sounding import sounding_notes

RATE, TAIL = 86.13, 0.5


def written(seed: int, count: int = 300) -> list[tuple[MidiNote, bool]]:
    """Notes on few keys, often struck again, under a pedal that is often changed."""
    rng, onset, made = np.random.default_rng(seed), 0, []
    for _ in range(count):
        onset += int(rng.choice([0, 3, 7, 20, 150], p=[0.3, 0.25, 0.25, 0.18, 0.02]))
        note = MidiNote(onset, int(rng.integers(1, 200)), int(rng.integers(60, 90)), 0, int(rng.integers(1, 128)))
        if not made or (note.onset, note.pitch) not in {(other.onset, other.pitch) for other, _ in made[-9:]}:
            made.append((note, bool(rng.random() < 0.6)))
    return made


def table(notes) -> dict[tuple[int, int], float]:
    columns = zip(np.rint(notes.onset * 100).astype(int), notes.pitch, notes.release, strict=True)
    return {(int(onset), int(pitch)): release for onset, pitch, release in columns}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("chunk", [1, 9, 64])
def test_what_is_told_is_complete_and_final(seed, chunk):
    made = written(seed)
    notes = [note for note, _ in made]
    pedal = pedal_intervals([note.onset for note in notes], [down for _, down in made])
    whole = table(sounding_notes(notes, pedal))
    before = 0
    for heard, until in written_snapshots(iter(made), [], None, chunk, RATE, TAIL):
        assert before < until <= before + chunk
        told = table(heard)
        for name, release in whole.items():
            if name[0] / 100 * RATE < until and release + TAIL > before / RATE:
                assert name in told
        for name, release in told.items():
            # The release is the true one, or both lie in what is not known yet.
            assert release == whole[name] or min(release, whole[name]) * RATE >= until
        before = until
    assert before == math.ceil((max(whole.values()) + 1.0) * RATE)
    assert score_end(notes, pedal) == pytest.approx(max(whole.values()) + 1.0)


def test_no_more_is_asked_for_than_a_chunk_needs_and_no_more_kept_than_is_heard():
    asked = 0

    def endless():
        nonlocal asked
        while True:
            yield MidiNote(10 * asked, 8, 60 + asked % 12, 0, 80), True  # the pedal is never lifted
            asked += 1

    snapshots = written_snapshots(endless(), [], None, 64, RATE, TAIL)
    for index, (heard, until) in enumerate(snapshots):
        assert until == 64 * (index + 1) and 0.1 * (asked - 1) < until / RATE + 0.2
        assert len(heard) <= 61 * 10 and np.isinf(heard.release).sum() > 0
        if index == 200:
            break


def test_a_length_that_is_given_is_kept_and_silence_is_cut_into_chunks():
    late = [(MidiNote(3000, 10, 60, 0, 80), False)]
    untils = [until for _, until in written_snapshots(iter(late), [], 200, 64, RATE, TAIL)]
    assert untils == [64, 128, 192, 200]
    assert [until for _, until in written_snapshots(iter([]), [], 70, 64, RATE, TAIL)] == [64, 70]
    # The first chunk of a longer kind is short all the same.
    for chunk, expected in ((100, [64, 164, 200]), (20, list(range(20, 201, 20)))):
        assert [until for _, until in written_snapshots(iter(late), [], 200, chunk, RATE, TAIL)] == expected
    ringing = [until for _, until in written_snapshots(iter(late), [], None, 64, RATE, TAIL)]
    assert ringing[-1] == math.ceil(31.1 * RATE) and max(np.diff(ringing)) == 64


def test_the_pedal_that_was_given_counts_until_new_notes_tell_theirs():
    given = [(MidiNote(0, 10, 60, 0, 80), None), (MidiNote(100, 10, 62, 0, 80), None)]
    new = [
        (MidiNote(300, 10, 64, 0, 80), False),
        (MidiNote(400, 10, 65, 0, 80), True),
        (MidiNote(500, 10, 66, 0, 80), False),
    ]
    *_, (heard, _) = written_snapshots(iter([*given, *new]), [(0, 50), (90, 900)], 2000, 2000, RATE, TAIL)
    assert list(heard.release) == [0.5, 3.0, 3.1, 5.0, 5.1]


def test_a_known_piece_is_told_by_what_is_heard():
    notes = [note for note, _ in written(0)]
    whole = sounding_notes(notes, [])
    frames = int(score_end(notes, []) * RATE)
    told = list(score_snapshots(notes, [], frames, 64, RATE, TAIL))
    assert [until for _, until in told] == [*range(64, frames, 64), frames]
    assert [until for _, until in score_snapshots(notes, [], 300, 128, RATE, TAIL)] == [64, 192, 300]
    for number, (heard, until) in enumerate(told):
        expected = (whole.onset * RATE < until) & ((whole.release + TAIL) * RATE > 64 * number)
        assert table(heard) == table(whole.where(expected))
    assert len(told[3][0]) < len(notes) / 4
