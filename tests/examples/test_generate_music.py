"""The generation example: music and recordings go to a file while they are made; every example's help teaches."""

from __future__ import annotations

import importlib.util
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from audio_files import RATE, tone
from pipeline_utils_for_tests import tiny_pipeline

from melreformer_hf.configs import configs_of
from melreformer_hf.training.recipes import RECIPES

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name: str):
    specification = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    tiny_pipeline().save_pretrained(folder)
    return str(folder)


def test_file_holds_the_stream(checkpoint, tmp_path, capsys):
    words = ["--checkpoint", checkpoint, "--seconds", "1.5", "--steps", "2", "--seed", "3", "--chunk-seconds", "0.3"]
    load("generate_music").main([*words, "--output", str(tmp_path / "song.wav")])
    assert "first sound after" in capsys.readouterr().out
    data, rate = soundfile.read(tmp_path / "song.wav")
    called = tiny_pipeline()(1.5, num_inference_steps=2, generator=torch.Generator().manual_seed(3))
    called.save(tmp_path / "called.wav")
    expected = soundfile.read(tmp_path / "called.wav")[0]
    assert rate == RATE and data.size == expected.size and np.abs(data - expected).max() < 1e-3
    assert not list(tmp_path.glob(".*"))


def test_a_recording_is_expanded_to_another_length(checkpoint, tmp_path):
    soundfile.write(tmp_path / "in.flac", tone(1.0, rate=44100), 44100)
    words = ["--checkpoint", checkpoint, "--recording", str(tmp_path / "in.flac"), "--seconds", "2"]
    load("generate_music").main([*words, "--output", str(tmp_path / "out.wav")])
    assert abs(soundfile.info(tmp_path / "out.wav").duration - 2.0) < 0.02


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        (["--seconds", "-1"], "audio_length_in_s"),
        (["--chunk-seconds", "0"], "chunk_length_in_s"),
        (["--recording", "nowhere.wav"], "nowhere.wav"),
        (["--output", "song.m4a"], "must end in .wav"),
        (["--checkpoint", "nowhere"], "neither a folder"),
    ],
)
def test_mistakes_are_told(checkpoint, tmp_path, monkeypatch, capsys, words, fragment):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        load("generate_music").main(["--checkpoint", checkpoint, *words])
    assert stop.value.code == 2 and fragment in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", sorted(path.stem for path in EXAMPLES.glob("*.py")))
def test_help_of_every_example_teaches(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    text = capsys.readouterr().out
    assert stop.value.code == 0 and "default" in text and "--output" in text and len(text) > 800
    if name.startswith("train_"):
        recipe, told = name.removeprefix("train_"), load(name).__doc__
        assert "--config tiny" in told and "tiny" in configs_of(recipe) and f"melreformer train {recipe}" in told


def test_every_recipe_has_an_example():
    assert {f"train_{name}" for name in RECIPES} <= {path.stem for path in EXAMPLES.glob("*.py")}
