"""Reading and writing audio: every format, every kind of broken file."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile
import torch
from audio_files import RATE, tone

from melreformer_hf.audio.io import open_audio, read_audio, resample, resample_stream, write_audio


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_reads_every_format_from_path_and_bytes(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, tone(1.0), RATE)
    waveform, rate = read_audio(path)
    assert rate == RATE and waveform.dtype == torch.float32 and waveform.ndim == 1
    assert abs(waveform.numel() - RATE) <= 2 * 1152  # MP3 pads to whole frames
    assert 0.2 < waveform.abs().max() < 0.7
    again, _ = read_audio(path.read_bytes())
    assert torch.equal(again, waveform)


def test_eight_channels_are_mixed_down(tmp_path):
    channels = np.stack([tone(0.5) * gain for gain in range(8)], axis=1) / 8
    soundfile.write(tmp_path / "a.wav", channels, RATE, subtype="FLOAT")
    waveform, _ = read_audio(tmp_path / "a.wav")
    torch.testing.assert_close(waveform, torch.from_numpy(channels.mean(1).astype(np.float32)))


def test_resampling_keeps_the_tone(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(1.0, 440.0, 44100), 44100)
    waveform, rate = read_audio(tmp_path / "a.wav", 22050)
    assert rate == 22050 and waveform.numel() == 22050
    assert torch.fft.rfft(waveform).abs().argmax().item() == 440


@pytest.mark.parametrize("rate", [0, -1])
def test_resampling_refuses_absurd_rates(rate):
    with pytest.raises(ValueError, match=f"got {rate}"):
        resample(tone(0.1), RATE, rate)
    assert resample(tone(0.1), 1, 1).shape == tone(0.1).shape


@pytest.mark.parametrize("sizes", ([1, 3000, 0, 2, 19000, 47], [22050]))
def test_a_stream_is_resampled_as_the_whole(sizes):
    whole = tone(1.0)[: sum(sizes)].astype(np.float32)
    pieces = np.split(whole, np.cumsum(sizes)[:-1])
    for target in (16000, 48000):
        made = np.concatenate(list(resample_stream(pieces, 22050, target)))
        expected = resample(whole, 22050, target)
        assert abs(len(made) - len(expected)) <= 1 and made.dtype == np.float32
        common = min(len(made), len(expected))
        np.testing.assert_allclose(made[:common], expected[:common], atol=1e-5)
    assert all(one is two for one, two in zip(resample_stream(pieces, 22050, 22050), pieces, strict=True))
    with pytest.raises(ValueError, match="target must be a positive.*got 0"):
        list(resample_stream(pieces, 22050, 0))


def test_broken_files_are_refused_by_name(tmp_path):
    (tmp_path / "text.wav").write_text("this is no audio")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0, dtype=np.float32), RATE)
    soundfile.write(tmp_path / "nan.wav", np.array([0.0, np.nan], dtype=np.float32), RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "whole.flac", tone(1.0), RATE)
    (tmp_path / "cut.flac").write_bytes((tmp_path / "whole.flac").read_bytes()[:60])
    for name, fragment in (
        ("text.wav", "could not be decoded"),
        ("empty.wav", "no samples"),
        ("nan.wav", "NaN"),
        ("cut.flac", "cut.flac"),
    ):
        with pytest.raises(ValueError, match=fragment):
            read_audio(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="missing.wav"):
        read_audio(tmp_path / "missing.wav")


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_truncated_files_give_what_is_there_or_an_error(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, tone(4.0), RATE)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    if suffix in ("flac", "ogg"):
        with pytest.raises(ValueError, match=f"a.{suffix} (could not be decoded|holds no samples)"):
            read_audio(path)
        return
    waveform, rate = read_audio(path)
    assert 1.5 < waveform.numel() / rate < 2.1 and waveform.isfinite().all() and waveform[-RATE:].any()


def test_files_that_are_too_long_are_refused_before_they_are_decoded(tmp_path):
    soundfile.write(tmp_path / "long.flac", tone(3.0), RATE)
    assert read_audio(tmp_path / "long.flac", max_seconds=3.0)[0].numel() == 3 * RATE
    for source in (tmp_path / "long.flac", (tmp_path / "long.flac").read_bytes()):
        with pytest.raises(ValueError, match="lasts 3 s; at most 2.5 s"):
            read_audio(source, max_seconds=2.5)


def test_writing_is_whole_or_not_at_all(tmp_path):
    path = write_audio(tmp_path / "a.wav", torch.from_numpy(tone(0.2)) * 4, RATE)
    data, rate = soundfile.read(path)
    assert rate == RATE and 0.99 < np.abs(data).max() <= 1.0  # scaled, not clipped
    with pytest.raises(ValueError, match="NaN"):
        write_audio(tmp_path / "b.wav", torch.tensor([0.0, float("nan")]), RATE)
    assert [file.name for file in tmp_path.iterdir()] == ["a.wav"]
    write_audio(tmp_path / "new" / "folder" / "c.wav", torch.zeros(9), RATE)
    assert soundfile.info(tmp_path / "new" / "folder" / "c.wav").frames == 9


@pytest.mark.parametrize(
    ("name", "kind", "tolerance"),
    [("a.wav", "WAV", 1e-4), ("a.FLAC", "FLAC", 1e-4), ("a.ogg", "OGG", 0.1), ("a.mp3", "MP3", 0.1)],
)
def test_the_suffix_says_the_format(tmp_path, name, kind, tolerance):
    stereo = torch.from_numpy(np.stack([tone(1.0), tone(1.0, 880.0)]))
    write_audio(tmp_path / name, stereo, RATE)
    assert soundfile.info(tmp_path / name).format in (kind, "MPEG" if kind == "MP3" else kind)
    data, rate = soundfile.read(tmp_path / name)
    assert rate == RATE and data.shape[1] == 2 and abs(len(data) - RATE) <= 2 * 1152
    difference = data[2000:18000] - stereo.numpy().T[2000:18000]
    assert np.abs(difference).max() < tolerance
    with pytest.raises(ValueError, match="must end in .wav, .flac, .ogg, .mp3, got .*song.m4a"):
        write_audio(tmp_path / "song.m4a", stereo, RATE)
    with pytest.raises(ValueError, match="MP3 has the sampling rates .* got 22000"):
        write_audio(tmp_path / "b.mp3", stereo, 22000)
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_ten_minutes_of_vorbis_are_written(tmp_path):
    noise = torch.randn(1, 600 * 8000, generator=torch.Generator().manual_seed(0)) * 0.1
    write_audio(tmp_path / "a.ogg", noise, 8000)
    assert soundfile.info(tmp_path / "a.ogg").frames == noise.shape[1]


def test_a_full_disk_is_told():
    with (
        pytest.raises(OSError, match="/dev/full|could not be written"),
        open_audio("/dev/full", "a.wav", RATE) as write,
    ):
        for _ in range(10):
            write(torch.zeros(1, 100_000))
