"""Which recordings are held out: by name, and never nobody where there are enough."""

from __future__ import annotations

import json

import numpy as np
import pytest
import soundfile
from audio_files import RATE, tone
from typer.testing import CliRunner

from melreformer_hf.cli.main import app
from melreformer_hf.data.building import BuildConfig, build_dataset
from melreformer_hf.data.built import BuiltRecordings
from melreformer_hf.data.splits import assign_splits, name_hash, split_of


def test_splits_depend_on_the_name_alone():
    names = [f"recording {index}" for index in range(500)]
    splits = [split_of(name, 0.1, 0.2) for name in names]
    assert 70 < splits.count("test") < 130 and 30 < splits.count("validation") < 70
    fewer, _ = assign_splits(dict.fromkeys(names[:300]), 0.1, 0.2)
    more, notes = assign_splits(dict.fromkeys(names), 0.1, 0.2)
    assert all(more[name] == split for name, split in fewer.items()) and notes == []
    assert [more[name] for name in names] == splits


def test_the_hash_is_what_it_was():
    # A dataset that grows must keep its splits in later versions too.
    assert name_hash("a") == int("ca978112ca1bbdca", 16) / 2**64  # the beginning of SHA-256


@pytest.mark.parametrize("name", [f"only {index}" for index in range(12)])
def test_the_only_recording_is_trained_on(name):
    splits, notes = assign_splits({name: None})
    assert splits == {name: "train"} and [note.split()[0] for note in notes] == ["validation", "test"]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_a_handful_of_recordings_leaves_no_split_empty(count, seed):
    names = [f"{seed}-{index}" for index in range(count)]
    splits, notes = assign_splits(dict.fromkeys(names))
    found = set(splits.values())
    if count == 2:
        assert found == {"train", "validation"} and notes == ["test is missing: 2 recordings are not enough for it."]
    else:
        assert found == {"train", "validation", "test"} and notes == []


def test_splits_that_somebody_named_are_kept_and_missing_ones_taken_out_of_train():
    given = {f"piece {index}": "train" for index in range(40)} | {"a": "test", "b": "test"}
    splits, notes = assign_splits(given)
    assert splits["a"] == splits["b"] == "test" and list(splits.values()).count("test") == 2
    held_out = [name for name, split in splits.items() if split == "validation"]
    assert 1 <= len(held_out) <= 10 and len(notes) == 1 and f"{len(held_out)} of their train" in notes[0]
    full = {**given, "c": "validation"}
    assert assign_splits(full) == (full, [])
    assert assign_splits(given, validation_fraction=0.0) == (given, [])


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_datasets_of_one_to_five_recordings(tmp_path, count):
    (tmp_path / "in").mkdir()
    for index in range(count):
        soundfile.write(tmp_path / "in" / f"{index}.wav", tone(40.0 if count == 1 else 1.0, 220.0, 8000), 8000)
    report = build_dataset(tmp_path / "in", tmp_path / "out", BuildConfig(sampling_rate=8000), progress=False)
    expected = {"train", "validation"} if count == 2 else {"train", "validation", "test"}
    assert set(report["splits"]) == expected
    names = [item.name for split in expected for item in BuiltRecordings(tmp_path / "out", split).recordings]
    assert len(set(names)) == len(names) == max(count, len(expected))
    assert bool(report["notes"]) == (count < 3)
    if count == 1:
        parts = [BuiltRecordings(tmp_path / "out", split) for split in ("train", "validation", "test")]
        assert [part.recordings[0].num_samples for part in parts] == [256000, 32000, 32000]
        assert "its end is held out" in report["notes"][0]
        whole = np.concatenate([part.read(part.recordings[0]).numpy() for part in parts])
        np.testing.assert_allclose(whole, tone(40.0, 220.0, 8000), atol=2e-4)


def test_one_short_recording_says_what_is_missing(tmp_path):
    soundfile.write(tmp_path / "one.wav", tone(2.0), RATE)
    result = CliRunner().invoke(app, ["data", "build", str(tmp_path), "--output", str(tmp_path / "out")])
    assert result.exit_code == 0 and "validation and test are missing" in result.output
    with pytest.raises(ValueError, match="one of .'train'.*got 'validation'.*Build it again.*holds out validation"):
        BuiltRecordings(tmp_path / "out", "validation")


def test_files_that_cannot_be_used_do_not_leave_a_split_empty(tmp_path):
    names = sorted((f"piece{index}" for index in range(4)), key=name_hash)
    for index, name in enumerate(names):
        silent = index < 2  # the two that the rule for few recordings would hold out
        soundfile.write(tmp_path / f"{name}.wav", np.zeros(RATE) if silent else tone(1.0), RATE)
    soundfile.write(tmp_path / "more.wav", tone(1.0), RATE)
    report = build_dataset(tmp_path, tmp_path / "out", BuildConfig(), progress=False)
    assert set(report["splits"]) == {"train", "validation", "test"} and len(report["skipped"]) == 2
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report
