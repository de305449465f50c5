"""The codec's benchmark: rows of measured bits, of Opus where a program makes it, and of speed beside EnCodec."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from melreformer_hf.data.building import BuildConfig, build_dataset
from melreformer_hf.models.codec_lm.configuration_codec_lm import CodecLMConfig
from melreformer_hf.models.codec_lm.modeling_codec_lm import CodecLMModel
from melreformer_hf.models.soundstream.configuration_soundstream import SoundStreamConfig
from melreformer_hf.models.soundstream.modeling_soundstream import SoundStreamModel

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "codec.py"


@pytest.fixture(scope="module")
def script():
    specification = importlib.util.spec_from_file_location("benchmark_codec", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def codec(tmp_path_factory) -> str:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("codec")
    sizes = {"frame_size": 16, "frame_intermediate_size": 24, "num_frame_layers": 1, "hidden_size": 16}
    SoundStreamModel(SoundStreamConfig.preset("small", **sizes, codebook_size=32)).save_pretrained(folder)
    lm = {"num_quantizers": 12, "codebook_size": 32, "frame_code_size": 4}
    CodecLMModel(CodecLMConfig.preset("tiny", **lm)).save_pretrained(folder / "entropy")
    return str(folder)


def test_a_row_has_the_bits_of_the_file_and_the_distances(script):
    time = np.arange(22050) / 22050
    sound = (0.3 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)
    row = script.quality("same", [sound], 22050, lambda given: (torch.from_numpy(given)[None], 1000))
    parts = [part.strip() for part in row.strip("|").split("|")]
    assert parts[:4] == ["same", "8.00", "0.000", "0.000"] and float(parts[4]) > 60
    worse = script.quality("half", [sound], 22050, lambda given: (0.5 * torch.from_numpy(given)[None], 500))
    assert worse.split("|")[2].strip() == "4.00" and float(worse.split("|")[3]) > 0.2


def test_opus_comes_back_in_its_place(script):
    commands = script.opus_commands()
    if commands is None:
        pytest.skip("neither opusenc nor ffmpeg is installed")
    time = np.arange(2 * 22050) / 22050
    sound = (0.3 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)
    made, size = script.through_opus(sound, 22050, 24.0, commands)
    assert made.shape == (1, 44100) and 2000 < size < 12000
    assert script.si_sdr(made[:, 4410:-4410], torch.from_numpy(sound)[None, 4410:-4410]).mean() > 10


def test_tables(script, codec, tmp_path, monkeypatch, capsys):
    for name in ("a", "b", "c"):
        samples = 0.1 * np.random.default_rng(0).standard_normal(22050)
        soundfile.write(tmp_path / f"{name}.wav", samples, 22050, subtype="PCM_16")
    build_dataset(tmp_path, tmp_path / "built", BuildConfig(workers=1), progress=False)
    dataset = tmp_path / "built"
    words = ["--codec", codec, "--dataset", str(dataset), "--crops", "1", "--seconds", "0.5", "--kbps", "1", "--opus"]
    words += ["--entropy", "--threads", "1", "--speed-seconds", "0.2", "--repeats", "1"]
    monkeypatch.setattr(sys, "argv", ["codec.py", *words])
    monkeypatch.setattr(script, "peer", lambda count, config: tiny_peer())
    threads = torch.get_num_threads()
    try:
        script.main()
    finally:
        torch.set_num_threads(threads)
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith(f"| {codec} 1 |") for line in lines)
    assert any(line.startswith(f"| {codec} 1, language model |") for line in lines)
    assert any(line.startswith("| 1 | transformers' EnCodec") for line in lines)
    assert any(line.startswith("| 1 | ratio |") for line in lines)


def tiny_peer():
    from transformers import EncodecConfig, EncodecModel

    return EncodecModel(EncodecConfig(num_filters=2, hidden_size=16, codebook_dim=16, num_lstm_layers=1)).eval()


def test_the_peer_is_about_as_large(script):
    codec = SoundStreamConfig.preset("small")
    count = sum(parameter.numel() for parameter in script.peer(5_700_000, codec).parameters())
    assert 0.8 < count / 5_700_000 < 1.2


@pytest.mark.parametrize("words", [["--crops", "0"], ["--seconds", "0.1"], ["--threads", "0"]])
def test_wrong_words(script, words, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["codec.py", *words])
    with pytest.raises(SystemExit):
        script.read_arguments()
