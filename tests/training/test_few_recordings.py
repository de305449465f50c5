"""Trainings on a handful of recordings hold something out, or are refused before the first step."""

from __future__ import annotations

import pytest
import soundfile
from audio_files import RATE, tone
from training_utils import arguments

from melreformer_hf.training.main import main
from melreformer_hf.training.recipes.vocoder import VocoderRecipe


def music(folder, count: int, seconds: float) -> str:
    folder.mkdir()
    for index in range(count):
        soundfile.write(folder / f"{index}.wav", tone(seconds, 200.0 + 50 * index), RATE)
    return str(folder)


@pytest.mark.parametrize(("count", "seconds"), [(1, 32.0), (2, 2.0), (5, 2.0)])
def test_a_folder_of_few_recordings_trains_and_is_measured(tmp_path, count, seconds):
    words = arguments(
        music(tmp_path / "music", count, seconds), tmp_path / "run", "--max_steps", 1, "--num_workers", 0
    )
    metrics = main(VocoderRecipe, words)
    assert metrics["score"] > 0 and (tmp_path / "run/model.safetensors").is_file()


def test_one_short_recording_is_refused_before_the_first_step(tmp_path, capsys):
    words = arguments(music(tmp_path / "music", 1, 2.0), tmp_path / "run", "--max_steps", 1, "--num_workers", 0)
    with pytest.raises(SystemExit):
        main(VocoderRecipe, words)
    message = capsys.readouterr().err
    assert "validation and test are missing: one recording, shorter than 30 s" in message
    assert "got 'validation'" in message and "three recordings or more" in message
    assert not (tmp_path / "run/metrics.jsonl").exists()


@pytest.mark.parametrize("option", ["crop_frames", "validation_frames"])
def test_lengths_that_no_recording_has_are_named_by_their_option(tmp_path, capsys, option):
    words = arguments(music(tmp_path / "music", 3, 2.0), tmp_path / "run", "--max_steps", 1, "--num_workers", 0)
    with pytest.raises(SystemExit):
        main(VocoderRecipe, [*words, f"--options.{option}", "1000"])
    message = capsys.readouterr().err.splitlines()[-1]
    assert f"options.{option} must fit the recordings, got 1000 frames. No recording of the split" in message
    assert not (tmp_path / "run/metrics.jsonl").exists()
