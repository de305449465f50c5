"""`melreformer encode` and `decode`: files and pipes, what is told, what is refused."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from typer.testing import CliRunner

from melreformer_hf.cli.main import app
from melreformer_hf.models.codec_lm.configuration_codec_lm import CodecLMConfig
from melreformer_hf.models.codec_lm.modeling_codec_lm import CodecLMModel
from melreformer_hf.models.soundstream.configuration_soundstream import SoundStreamConfig
from melreformer_hf.models.soundstream.modeling_soundstream import SoundStreamModel
from melreformer_hf.processing.codec_files import CodecFileReader

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def codec(tmp_path_factory) -> str:
    torch.manual_seed(0)
    sizes = {"architecture": "spectral", "n_fft": 80, "synthesis_overlap": 7, "frame_size": 24}
    model = SoundStreamModel(
        SoundStreamConfig.preset("tiny", **sizes, frame_intermediate_size=48, num_frame_layers=2, audio_channels=2)
    )
    folder = tmp_path_factory.mktemp("codec")
    model.save_pretrained(folder)
    sizes = {"num_quantizers": 3, "codebook_size": 32, "initializer_range": 0.3, "frame_code_size": 4}
    CodecLMModel(CodecLMConfig.preset("tiny", **sizes)).save_pretrained(folder / "entropy")
    return str(folder)


@pytest.fixture
def song(tmp_path) -> Path:
    samples = 0.2 * np.random.default_rng(0).standard_normal((30000, 2))
    soundfile.write(tmp_path / "song.wav", samples, 16000, subtype="PCM_24")
    return tmp_path / "song.wav"


def run(*words) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_there_and_back(codec, song, tmp_path):
    told = run("encode", song, tmp_path / "song.mrc", "--codec", codec, "--bitrate", 2.5, "--threads", 1)
    size = (tmp_path / "song.mrc").stat().st_size
    assert f"song.mrc: 1.9 s in {size:,} bytes, {8 * size / 1000 / 1.875:.2f} kbit/s" in told
    with open(tmp_path / "song.mrc", "rb") as file:
        assert len(CodecFileReader(file).header.codebook_sizes) == 2  # 1.25 kbit/s each
    told = run("decode", tmp_path / "song.mrc", tmp_path / "back.flac", "--codec", codec, "--threads", 1)
    assert f"wrote {tmp_path / 'back.flac'} (1.9 s" in told
    back, rate = soundfile.read(tmp_path / "back.flac")
    assert back.shape == (15000, 2) and rate == 8000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back.flac", "song.mrc", "song.wav"]


def test_a_language_model_shortens_and_is_found_again(codec, song, tmp_path):
    for name, words in (("plain", ()), ("short", ("--entropy",))):
        run("encode", song, tmp_path / f"{name}.mrc", "--codec", codec, "--threads", 1, *words)
        run("decode", tmp_path / f"{name}.mrc", tmp_path / f"{name}.wav", "--codec", codec, "--threads", 2)
    assert (tmp_path / "plain.mrc").read_bytes()[3] == 1 and (tmp_path / "short.mrc").read_bytes()[3] == 2
    assert (tmp_path / "plain.wav").read_bytes() == (tmp_path / "short.wav").read_bytes()


def test_live_is_what_a_file_gives(codec, song, tmp_path):
    words = ["--codec", codec, "--threads", 1]
    told = run("encode", song, tmp_path / "live.wav", *words, "--live", "--bitrate", 2.5)
    assert "a hop of latency, 4 ms" in told and "than real time" in told and ("no hop" in told or "some hops" in told)
    run("encode", song, tmp_path / "song.mrc", *words, "--bitrate", 2.5)
    run("decode", tmp_path / "song.mrc", tmp_path / "back.wav", *words)
    live, back = (soundfile.read(tmp_path / name)[0] for name in ("live.wav", "back.wav"))
    assert live.shape == back.shape and np.abs(live - back).max() < 1e-4
    with pytest.raises(ValueError, match="--entropy is for files"):
        run("encode", song, tmp_path / "live.wav", *words, "--live", "--entropy")


def command(*words, **settings) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "melreformer_hf.cli", *map(str, words)]
    return subprocess.Popen(words, env=environment, stdout=-1, stderr=-1, **settings)


def test_pipes(codec, song, tmp_path):
    run("encode", song, tmp_path / "song.mrc", "--codec", codec, "--threads", 1)
    run("decode", tmp_path / "song.mrc", tmp_path / "back.wav", "--codec", codec, "--threads", 1)
    sender = command("encode", "-", "-", "--codec", codec, stdin=-1)
    data, errors = sender.communicate(song.read_bytes(), timeout=240)
    assert sender.returncode == 0, errors
    assert data == (tmp_path / "song.mrc").read_bytes()
    receiver = command("decode", "-", "-", "--codec", codec, stdin=-1)
    made, errors = receiver.communicate(data, timeout=240)
    assert receiver.returncode == 0, errors
    wav = (tmp_path / "back.wav").read_bytes()
    assert made[44:] == wav[44:] and made[:4] == b"RIFF"


def test_a_killed_encoding_leaves_nothing_that_looks_whole(codec, tmp_path):
    long = tmp_path / "long.wav"
    soundfile.write(long, np.zeros((8000 * 3600, 2), dtype=np.int16), 8000)
    process = command("encode", long, tmp_path / "long.mrc", "--codec", codec)
    growing = tmp_path / ".long.mrc.partial"
    try:
        deadline = time.monotonic() + 240
        while not growing.exists() or not growing.stat().st_size:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
    finally:
        process.kill()
        process.communicate()
    assert not (tmp_path / "long.mrc").exists()


def test_damage_is_told_with_its_place_and_partial_decodes_what_is_before(codec, song, tmp_path):
    run("encode", song, tmp_path / "song.mrc", "--codec", codec, "--threads", 1)
    data = (tmp_path / "song.mrc").read_bytes()
    (tmp_path / "cut.mrc").write_bytes(data[:-10])
    words = ["decode", tmp_path / "cut.mrc", tmp_path / "cut.wav", "--codec", codec, "--threads", 1]
    with pytest.raises(ValueError, match="At byte [0-9]+: the file ends within a block, at least 6 bytes are missing"):
        run(*words)
    assert not (tmp_path / "cut.wav").exists()
    told = run(*words, "--partial")
    assert "cut.mrc is not whole. At byte" in told
    assert soundfile.info(tmp_path / "cut.wav").frames == 15008  # whole frames of 32


@pytest.mark.parametrize(
    "words, message",
    [
        (["encode", "{song}", "{folder}/a.wav", "--codec", "{codec}"], r"--output must be a \.mrc file"),
        (["encode", "{song}", "{folder}/none/a.mrc", "--codec", "{codec}"], "No folder"),
        (["encode", "{folder}/none.wav", "{folder}/a.mrc", "--codec", "{codec}"], "No audio file at"),
        (
            ["encode", "{song}", "{folder}/a.mrc", "--codec", "{folder}"],
            "--codec must be a SoundStreamModel, or one of",
        ),
        (["encode", "{song}", "{folder}/a.mrc", "--codec", "{codec}", "--bitrate", "1"], "bandwidth must be at least"),
        (["decode", "{song}", "{folder}/a.wav", "--codec", "{codec}"], "At byte 0: a file of codes must begin"),
        (["decode", "{folder}/none.mrc", "{folder}/a.wav", "--codec", "{codec}"], "No file of codes at"),
        (["decode", "{song}", "{folder}/a.txt", "--codec", "{codec}"], "An audio file must end in"),
    ],
)
def test_mistakes(words, message, codec, song, tmp_path):
    words = [word.format(song=song, folder=tmp_path, codec=codec) for word in words]
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run(*words)
    assert {path.name for path in tmp_path.iterdir()} == {"song.wav"}


def test_what_is_no_wav_is_refused_at_a_pipe(codec):
    process = command("encode", "-", "-", "--codec", codec, stdin=-1)
    _, errors = process.communicate(io.BytesIO(b"ID3" + bytes(100)).getvalue(), timeout=240)
    assert process.returncode == 2 and b"Standard input must be a WAV file" in errors
