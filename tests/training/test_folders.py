"""Trainings that start from a folder of files: built once, found again, made anew when the files change."""

from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path

import pytest
import soundfile
from audio_files import write_music
from training_utils import VOCODER

from melreformer_hf.data.shard_writing import DATASET_FILE
from melreformer_hf.training import folders
from melreformer_hf.training.config import TrainingConfig
from melreformer_hf.training.folders import dataset_of, find_soundfont, is_dataset
from melreformer_hf.training.main import main

RATE = 22050


def settings(tmp_path, dataset, **values) -> TrainingConfig:
    return TrainingConfig(dataset=str(dataset), output_dir=str(tmp_path / "runs/one"), max_steps=1, **values)


@pytest.fixture
def music(tmp_path):
    write_music(tmp_path / "my music", count=3)
    return tmp_path / "my music"


def test_a_folder_of_recordings_is_built_once(tmp_path, music, capsys):
    built = Path(dataset_of(settings(tmp_path, music), RATE))
    assert built.parent == tmp_path / "runs/datasets" and built.name.startswith("my music-")
    told = capsys.readouterr().err
    assert "train: 1 recordings, 5 s" in told and str(built) in told
    stamp = (built / DATASET_FILE).stat().st_mtime_ns
    assert dataset_of(settings(tmp_path, music), RATE) == str(built)
    assert (built / DATASET_FILE).stat().st_mtime_ns == stamp and not capsys.readouterr().err
    # A dataset is taken as it is, and so is what is no folder.
    assert dataset_of(settings(tmp_path, built), RATE) == str(built)
    assert dataset_of(settings(tmp_path, "user/music"), RATE) == "user/music"


def test_it_is_built_anew_for_other_files_and_rates(tmp_path, music):
    built = {dataset_of(settings(tmp_path, music), RATE)}
    built.add(dataset_of(settings(tmp_path, music), 16000))
    name = sorted(music.glob("*.*"))[0]
    shutil.copy(name, name.with_stem("another"))
    built.add(dataset_of(settings(tmp_path, music), RATE))
    samples, rate = soundfile.read(name)
    soundfile.write(name, samples[:-100], rate)
    built.add(dataset_of(settings(tmp_path, music), RATE))
    assert len(built) == 4
    rates = {json.loads((Path(folder) / DATASET_FILE).read_text())["sampling_rate"] for folder in built}
    assert rates == {RATE, 16000}


def test_layouts_of_datasets_are_left_to_the_datasets_library(tmp_path):
    for layout in ("a/data/train-0.parquet", "b/train/x.wav", "c/shard-0.tar", "d/train/metadata.jsonl"):
        (tmp_path / layout).parent.mkdir(parents=True)
        (tmp_path / layout).write_bytes(b"x")
        folder = tmp_path / layout[0]
        assert is_dataset(folder) and dataset_of(settings(tmp_path, folder), RATE) == str(folder)


def test_folders_of_something_else_are_refused(tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("x")
    with pytest.raises(ValueError, match=r"recordings or MIDI files \(.wav.*.mid.*got .*texts"):
        dataset_of(settings(tmp_path, tmp_path / "texts"), RATE)


def test_midi_files_are_played_first(tmp_path, monkeypatch, capsys, music):
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores/one.mid").write_bytes(b"MThd")
    asked = {}

    def render(folder, output, soundfont, **options):
        asked.update(options, soundfont=soundfont, folder=folder)
        shutil.copytree(music, output)
        return type("Report", (), {"failed": [("two.mid", "broken")]})

    monkeypatch.setattr(folders, "render_folder", render)
    built = Path(dataset_of(settings(tmp_path, tmp_path / "scores", soundfont="piano.sf2"), RATE))
    assert asked["soundfont"] == Path("piano.sf2") and asked["sampling_rate"] == RATE
    assert (built / DATASET_FILE).is_file() and [path.name for path in built.parent.iterdir()] == [built.name]
    told = capsys.readouterr().err
    assert "1 MIDI files" in told and "left out two.mid: broken" in told
    again = [
        dataset_of(settings(tmp_path, tmp_path / "scores", soundfont=f"{name}.sf2"), RATE)
        for name in ("piano", "organ")
    ]
    assert again[0] == str(built) != again[1] and asked["soundfont"] == Path(
        "organ.sf2"
    )  # another sound, another dataset
    # Where there are recordings, as in folders of both, those are what is learned.
    shutil.copy(tmp_path / "scores/one.mid", music)
    dataset_of(settings(tmp_path, music), RATE)
    assert "1 MIDI files are not used" in capsys.readouterr().err


def test_sound_fonts_are_found_or_asked_for(tmp_path, monkeypatch):
    font = tmp_path / "b.sf2"
    monkeypatch.setattr(folders, "SOUND_FONTS", (str(tmp_path / "a.sf2"), str(font)))
    with pytest.raises(FileNotFoundError, match="--soundfont FILE.*fluid-soundfont-gm"):
        find_soundfont(None)
    font.touch()
    assert find_soundfont(None) == font and find_soundfont("mine.sf2") == Path("mine.sf2")


def test_only_the_first_process_of_a_machine_builds(tmp_path, music, monkeypatch):
    config = settings(tmp_path, music)
    expected = dataset_of(config, RATE)
    parked = tmp_path / "parked"
    os.rename(expected, parked)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(folders, "build_dataset", lambda *_: pytest.fail("built twice"))
    waiting = threading.Event()
    monkeypatch.setattr(folders.time, "sleep", lambda _: (waiting.set(), os.rename(parked, expected)))
    assert dataset_of(config, RATE) == expected and waiting.is_set()


def test_a_training_starts_from_a_folder_and_ends_with_a_card(tmp_path, music, capsys):
    words = [*VOCODER, "--dataset", music, "--output_dir", tmp_path / "runs/vocoder", "--max_steps", "1"]
    main("vocoder", [*words, "--num_workers", "0", "--options.crop_frames", "16"])
    written = json.loads((tmp_path / "runs/vocoder/training.json").read_text())
    assert (tmp_path / "runs/datasets" / written["config"]["dataset"]).is_dir()
    assert written["config"]["output_dir"] == "vocoder" and str(tmp_path) not in json.dumps(written)
    assert "Recipe `vocoder`" in (tmp_path / "runs/vocoder/README.md").read_text()
    assert str(tmp_path / "runs/vocoder") in capsys.readouterr().out
