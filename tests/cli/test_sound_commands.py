"""`melreformer sound`: what it writes and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile
from sounds_for_tests import tiny_sound_parts
from typer.testing import CliRunner

from melreformer_hf.cli.main import app
from melreformer_hf.pipelines.pipeline_token_generation import TokenGenerationPipeline

RATE = 22050


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("sounds")
    TokenGenerationPipeline(**tiny_sound_parts()).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def recording(tmp_path) -> str:
    time = np.arange(RATE) / RATE
    soundfile.write(tmp_path / "in.wav", 0.3 * np.sin(2 * np.pi * 500 * time), RATE, subtype="PCM_16")
    return str(tmp_path / "in.wav")


def run(*words) -> str:
    result = CliRunner().invoke(app, ["sound", *map(str, words)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_sounds_of_a_class_are_written(checkpoint, tmp_path):
    told = run("--class", "low", "--num", 2, "--seed", 7, "--output", tmp_path / "low.wav", "--checkpoint", checkpoint)
    assert "low, seed 7" in told and "low, seed 8" in told
    for index in range(2):
        samples, rate = soundfile.read(tmp_path / f"low-{index}.wav")
        assert rate == RATE and len(samples) == 4 * 8 * 256
        assert abs(20 * np.log10(np.abs(samples).max()) + 1) < 0.1
        assert (tmp_path / f"low-{index}.png").is_file()
    again = tmp_path / "again.wav"
    run("--class", "low", "--seed", 8, "--output", again, "--checkpoint", checkpoint)
    assert again.read_bytes() == (tmp_path / "low-1.wav").read_bytes()


def test_options_reach_the_drawing(checkpoint, tmp_path):
    made = {}
    for name, words in {
        "plain": (),
        "greedy": ("--greedy",),
        "cold": ("--temperature", 0.2),
        "top_k": ("--top-k", 1),
        "top_p": ("--top-p", 1e-6),
        "guided": ("--guidance", 4),
        "told": ("--guidance", 2),
        "not": ("--guidance", 1),
        "short": ("--seconds", 0.1),
    }.items():
        file = tmp_path / f"{name}.wav"
        run("--class", "high", "--seed", 3, *words, "--output", file, "--checkpoint", checkpoint)
        made[name] = file.read_bytes()
    assert made["greedy"] == made["top_k"] == made["top_p"]
    assert made["told"] == made["plain"] != made["not"]
    assert len({made[name] for name in ("plain", "greedy", "cold", "guided", "short")}) == 5
    assert len(soundfile.read(tmp_path / "short.wav")[0]) == 9 * 256


def test_recordings_go_on_are_repaired_and_blended(checkpoint, recording, tmp_path):
    run("--class", "low", "--continue", recording, "--keep", 0.2, "--seconds", 0.5, "--seed", 0,
        "--output", tmp_path / "on.wav", "--checkpoint", checkpoint)  # fmt: skip
    assert len(soundfile.read(tmp_path / "on.wav")[0]) == 43 * 256
    told = run("repair", recording, "--from", 0.3, "--to", 0.35, "--from", 0.7, "--to", 0.75, "--seed", 1,
               "--output", tmp_path / "mended.wav", "--checkpoint", checkpoint)  # fmt: skip
    assert "0.3 to 0.35 s, 0.7 to 0.75 s" in told
    before, after = (soundfile.read(file)[0] for file in (recording, tmp_path / "mended.wav"))
    scale = after[:5000].std() / before[:5000].std()  # full scale is not passed
    before = before * scale
    assert np.abs(before[:5000] - after[:5000]).max() < 1e-3
    assert np.abs(before[6800:7500] - after[6800:7500]).max() > 1e-3
    assert np.abs(before[15600:16300] - after[15600:16300]).max() > 1e-3
    told = run(
        "interpolate", recording, recording, "--steps", 3, "--output", tmp_path / "b.wav", "--checkpoint", checkpoint
    )
    assert "50% of the way from in.wav to in.wav" in told
    ends = [(tmp_path / f"b-{index}.wav").read_bytes() for index in range(3)]
    assert ends[0] == ends[1] == ends[2]  # both ends are the same sound


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        (["--class", "cat"], ["--class must be one of high, low", "'cat'"]),
        (["--top-p", "2"], ["--top-p must", "2.0"]),
        (["--temperature", "0"], ["--temperature must", "0.0"]),
        (["--continue", "nowhere.wav"], ["No audio file at nowhere.wav"]),
        (["--output", "a.txt"], [".wav"]),
        (["--checkpoint", "piano-tiny"], ["pipeline of sounds", "piano-tiny"]),
        (["repair", "IN", "--from", "1", "--to", "2", "--to", "3"], ["--from and --to", "1 and 2"]),
        (["repair", "nowhere.wav", "--from", "1", "--to", "2"], ["nowhere.wav"]),
        (["interpolate", "IN", "nowhere.wav"], ["nowhere.wav"]),
        (["interpolate", "IN", "IN", "--output", "-"], ["--output", "-"]),
    ],
)
def test_mistakes_are_told(checkpoint, recording, words, fragments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [recording if word == "IN" else word for word in words]
    words += [] if "--checkpoint" in words else ["--checkpoint", checkpoint]
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        CliRunner().invoke(app, ["sound", *words], catch_exceptions=False, standalone_mode=False)
    for fragment in fragments:
        assert fragment in str(error.value)


def test_the_bundled_sounds_are_the_default(tmp_path):
    told = run("--class", "dog", "--seconds", 1, "--seed", 7, "--output", tmp_path / "dog.wav")
    assert "loaded sounds-tiny" in told
    samples, _ = soundfile.read(tmp_path / "dog.wav")
    assert len(samples) == 86 * 256
