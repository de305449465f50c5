"""Audio that is written while it is made: whole, at its level, and kept when it is stopped."""

from __future__ import annotations

import errno
import io

import numpy as np
import pytest
import soundfile
import torch
from audio_files import RATE, tone

from melreformer_hf.pipelines import writing
from melreformer_hf.pipelines.outputs import AudioOutput, at_peak, check_peak, peak_gain
from melreformer_hf.pipelines.writing import write_stream, write_to_pipe


def chunks(waveform: torch.Tensor, size: int = 3000, error: BaseException | None = None):
    """(1, channel, size) pieces, and an error in place of the second half."""
    pieces = waveform.split(size, dim=-1)
    for number, piece in enumerate(pieces):
        if error is not None and number >= len(pieces) // 2:
            raise error
        yield piece[None]


def stereo(seconds: float = 1.0) -> torch.Tensor:
    return torch.from_numpy(np.stack([tone(seconds), 0.5 * tone(seconds, 880.0)])) * 0.05


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_the_stream_is_the_file_that_save_writes(tmp_path, suffix, monkeypatch):
    monkeypatch.setattr(writing, "_BLOCK", 1000)
    waveform = stereo()
    output = AudioOutput(waveform[None], torch.tensor([RATE]), RATE, -1.0)
    output.save(tmp_path / f"saved.{suffix}")
    told = []
    path = tmp_path / "new" / f"streamed.{suffix}"
    written = write_stream(chunks(waveform), path, RATE, -1.0, told.append, channels=2)
    assert written.stopped is None and written.num_samples == RATE and len(told) == 8
    first, second = (soundfile.read(file)[0] for file in (tmp_path / f"saved.{suffix}", written.path))
    assert np.abs(first - second).mean() < (1e-5 if suffix in ("wav", "flac") else 1e-2)
    if suffix != "mp3":
        assert np.abs(second).max() == pytest.approx(10 ** (-1 / 20), abs=1e-3 if suffix != "ogg" else 0.05)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("samples", [0, 1, 2, 9, 1000, 1001])
def test_a_wav_file_of_any_length_is_made_in_place(tmp_path, samples, monkeypatch):
    monkeypatch.setattr(writing, "_BLOCK", 100)
    data = torch.linspace(-1.5, 1.5, samples)[None]
    written = write_stream([data[None]], tmp_path / "a.wav", RATE, None)
    sound, rate = soundfile.read(written.path)
    assert rate == RATE and sound.shape == (samples,) and soundfile.info(written.path).subtype == "PCM_16"
    expected = data[0].numpy() / 1.5 if samples > 1 else data[0].numpy().clip(-1, 1)
    np.testing.assert_allclose(sound, expected, atol=1e-4)  # too loud: scaled down as a whole
    assert (tmp_path / "a.wav").stat().st_size == 44 + 2 * samples


@pytest.mark.parametrize("suffix", ["wav", "ogg"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_what_was_made_is_kept(tmp_path, suffix, error):
    path = tmp_path / f"a.{suffix}"
    written = write_stream(chunks(stereo(), error=error), path, RATE, channels=2)
    assert written.stopped is error and written.num_samples == 4 * 3000
    data, _ = soundfile.read(path)
    assert len(data) == 12000 and 0.8 < np.abs(data).max() <= 1.0
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_without_room_for_another_format_it_is_a_wav_file(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writing, "open_audio", full)
    written = write_stream(chunks(stereo()), tmp_path / "a.mp3", RATE, channels=2)
    assert written.path == tmp_path / "a.wav" and written.stopped.errno == errno.ENOSPC
    assert soundfile.info(written.path).frames == RATE
    assert [file.name for file in tmp_path.iterdir()] == ["a.wav"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, ValueError])
def test_nothing_is_left_of_nothing(tmp_path, error):
    def broken():
        raise error("at once")
        yield

    with pytest.raises(error):
        write_stream(broken(), tmp_path / "a.wav", RATE)
    with pytest.raises(ValueError, match="NaN"):
        write_stream([torch.full((1, 1, 9), torch.nan)], tmp_path / "a.wav", RATE)
    with pytest.raises(ValueError, match="must end in"):
        write_stream([torch.zeros(1, 1, 9)], tmp_path / "a.m4a", RATE)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("peak", "level"), [(0.5, 0.5), (1.0, 1.0), (4.0, 1.0)])
def test_a_level_that_is_kept_is_lowered_only_above_full_scale(tmp_path, peak, level):
    waveform = torch.from_numpy(tone(0.1)) / np.abs(tone(0.1)).max()
    written = write_stream([peak * waveform[None, None]], tmp_path / "a.flac", RATE, None)
    np.testing.assert_allclose(soundfile.read(written.path)[0], level * waveform.numpy(), atol=1e-4)


def test_gains_that_give_a_level():
    assert peak_gain(0.5, -20.0) == pytest.approx(0.2) and peak_gain(0.5, 0.0) == 2.0
    assert peak_gain(0.5, None) == peak_gain(0.0, -1.0) == peak_gain(2.0**-16.01, -1.0) == 1.0
    assert peak_gain(2.0**-16, 0.0) == 2.0**16  # the softest that is not silence
    assert at_peak(torch.zeros(1, 0), -1.0).shape == (1, 0)
    for refused in (0.1, True, float("nan"), -float("inf"), "loud"):
        with pytest.raises(ValueError, match="peak_db must be a number of at most 0"):
            check_peak(refused)
    for accepted in (0, 0.0, -200.0, None):
        check_peak(accepted)


def test_silence_stays_silence(tmp_path):
    faint = torch.randn(1, 1, 5000, generator=torch.Generator().manual_seed(0)).clamp(-1, 1) * 2.0**-17
    AudioOutput(faint, torch.tensor([5000]), RATE, -1.0).save(tmp_path / "a.wav")
    written = write_stream([faint], tmp_path / "b.wav", RATE, -1.0)
    for path in (tmp_path / "a.wav", written.path):
        assert not soundfile.read(path)[0].any()


def test_a_pipe_gets_its_length_first():
    pipe, told = io.BytesIO(), []
    waveform = stereo()
    write_to_pipe(chunks(waveform), pipe, RATE, RATE, 2.0, told.append, channels=2)
    data, rate = soundfile.read(io.BytesIO(pipe.getvalue()))
    assert rate == RATE and len(told) == 8
    np.testing.assert_allclose(data, 2.0 * waveform.numpy().T, atol=1e-4)
