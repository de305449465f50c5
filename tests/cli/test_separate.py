"""`melreformer separate`: files, pictures, what is told, what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from typer.testing import CliRunner

from melreformer_hf.cli.main import app
from melreformer_hf.models.band_split_separator.configuration_band_split_separator import BandSplitSeparatorConfig
from melreformer_hf.models.band_split_separator.modeling_band_split_separator import BandSplitSeparatorModel


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("separator")
    BandSplitSeparatorModel(BandSplitSeparatorConfig.preset("test")).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def song(tmp_path) -> Path:
    samples = 0.2 * np.random.default_rng(0).standard_normal((16000, 2))
    soundfile.write(tmp_path / "song.wav", samples, 16000, subtype="FLOAT")
    return tmp_path / "song.wav"


def run(*words) -> str:
    result = CliRunner().invoke(app, ["separate", *map(str, words)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_a_song_becomes_two_stems_and_a_picture(checkpoint, song, tmp_path):
    folder = tmp_path / "new" / "stems"
    told = run(song, "--output", folder, "--checkpoint", checkpoint, "--threads", 1)
    assert sorted(path.name for path in folder.iterdir()) == ["instrumental.wav", "stems.png", "vocals.wav"]
    assert f"wrote {folder / 'vocals.wav'}, {folder / 'instrumental.wav'}, {folder / 'stems.png'} (1.0 s, " in told
    stems = [soundfile.read(folder / f"{name}.wav") for name in ("vocals", "instrumental")]
    assert [rate for _, rate in stems] == [16000, 16000]
    assert np.abs(stems[0][0] + stems[1][0] - soundfile.read(song)[0]).max() < 1e-4
    assert (folder / "stems.png").read_bytes()[:4] == b"\x89PNG"


def test_another_format_and_no_picture(checkpoint, song, tmp_path):
    run(song, "-o", tmp_path / "s", "--checkpoint", checkpoint, "--format", "flac", "--no-picture", "--threads", 1)
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == ["instrumental.flac", "vocals.flac"]


def test_mistakes_are_told(checkpoint, song, tmp_path):
    with pytest.raises(ValueError, match="must end in .wav, .flac, .ogg, .mp3"):
        run(song, "--checkpoint", checkpoint, "--format", "aiff")
    with pytest.raises(ValueError, match="--output must be a folder, got the file"):
        run(song, "--checkpoint", checkpoint, "-o", song)
    with pytest.raises(FileNotFoundError, match="missing.wav"):
        run(tmp_path / "missing.wav", "--checkpoint", checkpoint)
    with pytest.raises(ValueError, match="No pipeline 'nothing'"):
        run(song, "--checkpoint", "nothing", "-o", tmp_path / "s")
    assert not (tmp_path / "s").exists()
