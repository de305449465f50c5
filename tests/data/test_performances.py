"""Performances: what is kept of a score, that notes and audio are of one time, what a crop tells."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from testing_utils import assert_error

from melreformer_hf.data.performances import (
    NOTES_FILE,
    PerformanceStore,
    PerformanceStream,
    read_notes_table,
    write_notes,
)
from melreformer_hf.data.performing import (
    KEYS_ALONE,
    TOUCHES,
    PerformanceConfig,
    build_performances,
    calibration_scores,
    excerpt_of,
    score_to_midi,
)
from melreformer_hf.data.splits import name_hash
from melreformer_hf.nn.sounding import SoundingNotes
from melreformer_hf.processing.midi.notes import MidiNote, midi_bytes, notes_to_midi, read_notes, write_midi
from melreformer_hf.processing.midi.pedal import read_pedal
from melreformer_hf.processing.midi.sounding import sounding_notes

# Plays a click of 10 ms at every onset, whose height says the velocity.
SYNTHESIZER = """#!{python}
import array, sys, wave
sys.path[:0] = {path!r}
import mido
words = sys.argv[1:]
option = dict(zip(words, words[1:]))
rate, seconds, clicks = int(option["-r"]), 0.0, []
for message in mido.MidiFile(words[-1]):
    seconds += message.time
    if message.type == "note_on" and message.velocity:
        clicks.append((seconds, message.velocity))
samples = array.array("h", bytes(4 * int((seconds + 0.01) * rate)))  # two channels
for begin, velocity in clicks:
    for i in range(2 * int(begin * rate), 2 * int((begin + 0.01) * rate)):
        samples[i] = 200 * velocity
with wave.open(option["-F"], "wb") as file:
    file.setparams((2, 2, rate, 0, "NONE", ""))
    file.writeframesraw(samples.tobytes())
"""


def note(onset, duration, pitch=60, velocity=64, instrument=0) -> MidiNote:
    return MidiNote(onset, duration, pitch, instrument, velocity)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder, root = tmp_path_factory.mktemp("midi"), tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        program = root / "bin" / "fluidsynth"
        program.parent.mkdir()
        program.write_text(SYNTHESIZER.format(python=sys.executable, path=sys.path))
        program.chmod(0o755)
        patch.setenv("PATH", str(program.parent))
        (root / "piano.sf2").write_bytes(b"RIFF\x08\0\0\0sfbkname")
        for number, split in enumerate(("train", "train", "validation", "test")):
            (folder / split).mkdir(exist_ok=True)
            notes = [note(100 + 50 * step, 30, 60 + step, 40 + 10 * number, 40 * number) for step in range(6)]
            write_midi(notes_to_midi(notes), folder / split / f"piece{number}.mid")
        (folder / "broken.mid").write_bytes(b"MThd")
        rows = [
            f"{split}/piece{number}.mid,{split},CC0-1.0"
            for number, split in enumerate(("train", "train", "validation", "test"))
        ]
        (folder / "metadata.csv").write_text("\n".join(["file_name,split,license", *rows]))
        config = PerformanceConfig(sampling_rate=8000, excerpt_seconds=2.0, workers=1)
        report = build_performances(folder, root / "data", root / "piano.sf2", config, progress=False)
    assert [skipped["file"] for skipped in report["skipped"]] == ["broken.mid"]
    assert not list(root.glob(".data*")), "what was made on the way is left behind"
    return root / "data"


def test_clicks_are_heard_where_the_notes_say(dataset):
    counts = {}
    for split in ("train", "validation", "test"):
        store = PerformanceStore(dataset, split)
        counts[split] = sorted(recording.name for recording in store.recordings)
        recording = store.recordings[0]
        waveform = store.audio.read(recording)
        heard = waveform.abs() > 1e-3
        begins = torch.nonzero(heard & ~heard.roll(1)).flatten() / 8000
        expected = np.unique(store.notes[recording.name].onset)
        np.testing.assert_allclose(begins.numpy()[: len(expected)], expected, atol=1e-3)
    assert counts == {
        "train": sorted([KEYS_ALONE, TOUCHES, "train/piece0", "train/piece1"]),
        "validation": ["validation/piece2"],
        "test": ["test/piece3"],
    }


def test_only_an_excerpt_is_played(dataset):
    store = PerformanceStore(dataset, "validation", sampling_rate=8000)
    (recording,) = store.recordings
    notes = store.notes[recording.name]
    # The last onset is at 3.5 s, an excerpt is 2 s long: it begins within the first 1.5 s.
    assert 0 < len(notes) < 6 and notes.onset.max() < 2.0
    begin = round(name_hash("validation/piece2") * 150)  # ticks
    onsets = [onset - begin for onset in range(100, 351, 50) if begin <= onset < begin + 200]
    np.testing.assert_allclose(notes.onset, np.array(onsets) / 100)
    assert recording.num_samples / 8000 == pytest.approx(notes.release.max() + 2.0, abs=0.02)
    assert store.hours == pytest.approx(recording.num_samples / 8000 / 3600)


def test_crops_tell_notes_from_their_own_beginning(dataset):
    store = PerformanceStore(dataset, "train", cache_minutes=1.0)
    stream = store.crops(8000, seed=3)
    item, again = stream.item(5), store.crops(8000, seed=3).item(5)
    assert item["waveform"].shape == (8000,) and torch.equal(item["waveform"], again["waveform"])
    assert item["index"] == 5 and item["recording"] in store.notes
    whole, shifts = store.notes[item["recording"]], set()
    shifts |= set(np.round(whole.onset - item["notes"].onset, 6)) | set(
        np.round(whole.release - item["notes"].release, 6)
    )
    assert len(shifts) == 1 and shifts.pop() >= 0
    heard = torch.nonzero(item["waveform"].abs() > 1e-3).flatten() / 8000
    inside = item["notes"].onset[(item["notes"].onset > 0.01) & (item["notes"].onset < 0.98)]
    assert all((heard - onset).abs().min() < 2e-3 for onset in inside)
    for told in (store.crops(8000), PerformanceStream(store, 8000)):
        assert (told.seed, told.rank, told.world_size) == (0, 0, 1)
    names = {stream.item(index)["recording"] for index in range(60)}
    assert {KEYS_ALONE, TOUCHES} <= names


class Pieces:
    """Recordings of 5, 6 and 2 samples."""

    recordings = [SimpleNamespace(name=name, num_samples=size) for name, size in (("a", 5), ("b", 6), ("c", 2))]

    def item_of(self, recording, start: int, length: int) -> dict:
        assert length == 4
        return {"place": (recording.name, start)}


def test_every_place_of_a_crop_is_as_likely():
    stream = PerformanceStream(Pieces(), 4, seed=1)
    counts = Counter(stream.item(index)["place"] for index in range(1000))
    assert sorted(counts) == [("a", 0), ("a", 1), ("b", 0), ("b", 1), ("b", 2)]
    assert all(150 < count < 250 for count in counts.values())
    with pytest.raises(ValueError, match="at most 6"):
        PerformanceStream(Pieces(), 7)


def test_an_excerpt_begins_and_ends_at_its_limits():
    notes = [note(50, 100, 40), note(100, 30, 50, instrument=25), note(180, 500, 60), note(200, 10, 70)]
    kept, pedal = excerpt_of(notes, [(0, 120), (150, 160), (190, 400), (300, 310)], 100, 100)
    assert kept == [note(0, 30, 50), note(80, 20, 60)]
    assert pedal == [(0, 20), (50, 60), (90, 100)]


def test_scores_keep_notes_and_pedal_and_end_two_seconds_later():
    notes, pedal = [note(10, 20, 50), note(30, 5, 50), note(30, 40, 62, 9)], [(20, 60), (65, 90)]
    midi = score_to_midi(notes, pedal)
    content = midi_bytes(midi)
    assert read_notes(content) == notes and read_pedal(content) == pedal
    assert midi.length == pytest.approx(0.9 + 2.0, abs=0.011)
    # At one tick the pedal comes before keys, so that a key that goes up as the pedal goes down is held.
    held = score_to_midi([note(0, 20)], [(20, 50)])
    kinds = [message.type for message in held if message.type in ("note_off", "control_change")]
    assert kinds[:2] == ["control_change", "note_off"]
    assert sounding_notes([note(0, 20)], [(20, 50)]).release.tolist() == [0.5]


def test_calibration_has_every_key_alone_and_touches_all_over():
    scores = calibration_scores()
    alone, touches = scores[KEYS_ALONE][0], scores[TOUCHES][0]
    assert [each.pitch for each in alone] == list(range(21, 109))
    ends = [each.onset + each.duration for each in alone]
    assert all(begin - end == 200 for end, begin in zip(ends, [each.onset for each in alone][1:], strict=False))
    assert sorted({each.pitch for each in touches}) == list(range(21, 109)) and len(touches) == 4 * 88
    velocities = [each.velocity for each in touches]
    assert min(velocities) < 15 and max(velocities) > 120
    # Whatever shares are held out, up to a quarter in all, they stay in train.
    assert min(name_hash(KEYS_ALONE), name_hash(TOUCHES)) > 0.25


def test_notes_are_saved_to_the_bit(tmp_path):
    notes = {
        "a b/c": SoundingNotes(
            np.array([0.1, 1 / 3]), np.array([2.0, math.inf]), np.array([1, 2]), np.array([3, 127])
        ),
        "none": SoundingNotes.none(),
        "é": SoundingNotes(np.array([5.0]), np.array([6.0]), np.array([60]), np.array([64])),
    }
    write_notes(tmp_path / NOTES_FILE, notes)
    read = read_notes_table(tmp_path / NOTES_FILE)
    assert list(read) == list(notes)
    for name, table in notes.items():
        for column in ("onset", "release", "pitch", "velocity"):
            np.testing.assert_array_equal(getattr(read[name], column), getattr(table, column))
    assert [path.name for path in tmp_path.iterdir()] == [NOTES_FILE]


def test_mistakes_are_named(dataset, tmp_path):
    with pytest.raises(ValueError) as error:
        PerformanceStore(dataset, "train", sampling_rate=22050)
    assert_error(error, "8000", "22050")
    with pytest.raises(ValueError) as error:
        PerformanceStore(dataset, "train").crops(10**8)
    assert_error(error, "num_samples", "100000000")
    with pytest.raises(ValueError) as error:
        PerformanceConfig(excerpt_seconds=0.5)
    assert_error(error, "excerpt_seconds", "0.5")
    with pytest.raises(ValueError) as error:
        build_performances(tmp_path, tmp_path / "out", tmp_path / "font.sf2", PerformanceConfig())
    assert_error(error, ".mid", str(tmp_path))


def test_a_dataset_without_notes_is_refused(dataset, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(dataset, copy)
    (copy / NOTES_FILE).unlink()
    with pytest.raises(ValueError) as error:
        PerformanceStore(copy)
    assert_error(error, NOTES_FILE, str(copy))
    report = json.loads((copy / "report.json").read_text())
    assert report["splits"]["train"]["recordings"] == 4
