"""The command line: help is light, results are whole, mistakes are one line."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from audio_files import RATE, tone, write_music
from pipeline_utils_for_tests import tiny_pipeline
from typer.testing import CliRunner

from melreformer_hf._errors import one_line
from melreformer_hf._registration import FAMILIES
from melreformer_hf.cli.generate import speed
from melreformer_hf.cli.main import app
from melreformer_hf.hub.bundled import BUNDLED
from melreformer_hf.pipelines import writing
from melreformer_hf.pipelines.pipeline_mel_reformer import MelReformerPipeline
from melreformer_hf.pipelines.writing import Written


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    tiny_pipeline().save_pretrained(folder)
    return str(folder)


def run(*words: str):
    result = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_generate_writes_wav_and_picture(checkpoint, tmp_path):
    output = tmp_path / "song.wav"
    words = ("generate", "--checkpoint", checkpoint, "--seconds", "1.5", "--steps", "3", "--seed", "5")
    text = run(*words, "--output", str(output))
    assert "seed 5" in text and "than real time" in text and str(output) in text
    data, rate = soundfile.read(output)
    assert rate == RATE and abs(data.size / rate - 1.5) < 0.02
    assert (tmp_path / "song.png").read_bytes()[:4] == b"\x89PNG"
    pipe = MelReformerPipeline.from_pretrained(checkpoint)
    pipe.set_progress_bar_config(disable=True)
    called = pipe(1.5, num_inference_steps=3, generator=torch.Generator().manual_seed(5))
    called.save(tmp_path / "called.wav", peak_db=-1.0)
    np.testing.assert_allclose(soundfile.read(tmp_path / "called.wav")[0], data, atol=1e-4)
    assert abs(20 * np.log10(np.abs(data).max()) + 1) < 0.01
    run(*words, "--keep-level", "--output", str(tmp_path / "soft.wav"))
    np.testing.assert_allclose(
        soundfile.read(tmp_path / "soft.wav")[0],
        called.audios[0, 0] / called.audios.abs().max().clamp(min=1),
        atol=1e-4,
    )
    run(*words, "--output", str(tmp_path / "again.wav"))
    assert (soundfile.read(tmp_path / "again.wav")[0] == data).all()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "The disk is full"),
        (OSError(errno.EFBIG, os.strerror(errno.EFBIG)), os.strerror(errno.EFBIG)),
    ],
)
def test_a_full_disk_is_told_with_the_place_of_what_was_made(checkpoint, tmp_path, monkeypatch, error, reason):
    """In the words that the user reads: those for full disks in general name no file."""
    kept = Written(tmp_path / "song.wav", RATE, error)
    monkeypatch.setattr(writing, "write_stream", lambda *_: kept)
    words = ["generate", "--checkpoint", checkpoint, "--seconds", "2", "--steps", "1"]
    told = CliRunner().invoke(app, [*words, "-o", str(tmp_path / "song.flac")])
    assert one_line(told.exception).startswith(f"{reason}: the 1.0 of 2.0 s that were made are in {kept.path}.")


def test_several_pieces_have_seeds_of_their_own(checkpoint, tmp_path, capfd):
    words = ("generate", "--checkpoint", checkpoint, "--seconds", "1", "--steps", "2")
    folder = tmp_path / "new" / "folder"
    text = run(*words, "--num", "2", "--seed", "7", "-o", str(folder / "song.flac"))
    for index in range(2):
        assert (folder / f"song-{index}.png").is_file() and str(folder / f"song-{index}.flac") in text
        assert f"seed {7 + index}" in text
    shown = text + capfd.readouterr().err
    assert "idea: 100%" in shown and "1.0/1.0 s of music" in shown
    run(*words, "--seed", "8", "-o", str(tmp_path / "alone.flac"))
    alone, second = (soundfile.read(path)[0] for path in (tmp_path / "alone.flac", folder / "song-1.flac"))
    np.testing.assert_array_equal(alone, second)
    assert soundfile.info(folder / "song-0.flac").format == "FLAC" and not list(folder.glob(".*"))


def test_a_pipe_gets_a_wav_file(checkpoint, tmp_path):
    words = [sys.executable, "-m", "melreformer_hf", "generate", "--checkpoint", checkpoint, "--seconds", "1.5"]
    result = subprocess.run([*words, "--steps", "2", "--seed", "5", "-o", "-"], capture_output=True, check=True)
    assert b"loaded" in result.stderr and b"seed" not in result.stdout[:44]
    data, rate = soundfile.read(io.BytesIO(result.stdout))
    assert rate == RATE and abs(data.size / rate - 1.5) < 0.02 and np.abs(data).max() > 0.1


def test_speed_has_words_for_both_sides():
    assert speed(5.04) == "5.0 times faster than real time" and speed(0.1) == "10.0 times slower than real time"


def test_expand_reads_another_rate(checkpoint, tmp_path):
    soundfile.write(tmp_path / "in.flac", tone(1.0, rate=44100), 44100)
    run("expand", str(tmp_path / "in.flac"), "--checkpoint", checkpoint, "--output", str(tmp_path / "out.wav"))
    assert abs(soundfile.info(tmp_path / "out.wav").duration - 1.0) < 0.02
    soundfile.write(tmp_path / "silence.wav", np.zeros(RATE), RATE)
    run("expand", str(tmp_path / "silence.wav"), "-o", str(tmp_path / "still.ogg"))
    assert np.abs(soundfile.read(tmp_path / "still.ogg")[0]).max() < 1e-3


def test_data_build(tmp_path):
    write_music(tmp_path / "in", count=3)
    (tmp_path / "in" / "bad.wav").write_text("no audio")
    text = run("data", "build", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--test-fraction", "0")
    assert (
        "train: 2 recordings" in text
        and "validation: 1 recordings" in text
        and "skipped 1 files" in text
        and f"wrote {tmp_path / 'out'}" in text
    )


def test_convert_writes_what_from_pretrained_loads(tmp_path):
    from safetensors.torch import save_file

    from melreformer_hf.models.mel_reformer.modeling_mel_reformer import MelReformerModel

    arguments = {"n_mels": 4, "window_size": 2, "num_blocks": 1, "num_heads": 2, "dim_embed": 8}
    arguments |= {"encoder_block_size": 8, "decoder_block_size": 4}
    state = MelReformerModel.from_original_arguments(arguments).to_original_state_dict()
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "old.safetensors")
    (tmp_path / "arguments.json").write_text(json.dumps(arguments))
    paths = ("--checkpoint", str(tmp_path / "old.safetensors"), "--arguments", str(tmp_path / "arguments.json"))
    run("convert", "--family", "mel_reformer", *paths, "--output", str(tmp_path / "new"))
    run("convert", "--family", "mel_reformer", *paths, "--output", str(tmp_path / "mine"), "--license", "cc0-1.0")
    cards = [(tmp_path / name / "README.md").read_text() for name in ("new", "mine")]
    assert "license: unknown" in cards[0] and "license: cc0-1.0" in cards[1] and "`old.safetensors`" in cards[0]
    loaded = MelReformerModel.from_pretrained(tmp_path / "new").to_original_state_dict()
    assert all((loaded[key] == value).all() for key, value in state.items())


def test_converted_weights_have_their_original_s_licence_or_none():
    """Never this package's own: convert writes what the table says, and that is known of one program's weights only."""
    licences = {name: family.weights_license for name, family in FAMILIES.items()}
    assert licences.pop("rq_transformer") == "cc-by-nc-sa-4.0" and set(licences.values()) == {"unknown"}


def test_doctor_reports(monkeypatch):
    text = run("doctor")
    assert "torch 2" in text and "reads and writes WAV" in text and "will be used" in text
    assert "available cores" in text and ("sleep while they wait" in text or "1 thread " in text)
    models = next(line for line in text.splitlines() if line.startswith("models:"))
    cards = {path.parent.name for path in BUNDLED.glob("*/README.md")}
    assert cards and set(re.findall(r"[a-z]+-[a-z]+", models)) == cards
