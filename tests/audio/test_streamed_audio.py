"""Audio that is decoded and resampled piece by piece equals the whole."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import soundfile

from melreformer_hf.audio.io import read_audio, resample, resample_stream, stream_audio


def sound(samples: int = 5000, channels: int = 2) -> np.ndarray:
    return 0.4 * np.random.default_rng(0).uniform(-1, 1, (samples, channels))


@pytest.mark.parametrize(
    "suffix, subtype", [("wav", "PCM_16"), ("wav", "FLOAT"), ("flac", "PCM_24"), ("ogg", "VORBIS")]
)
@pytest.mark.parametrize("channels", (1, 2))
def test_pieces_of_a_file_make_the_whole(tmp_path, suffix, subtype, channels):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, sound(), 8000, subtype=subtype)
    rate, pieces = stream_audio(path, channels, block=777)
    pieces = list(pieces)
    assert rate == 8000 and [piece.shape[-1] for piece in pieces] == [777] * 6 + [338]
    whole = read_audio(path, channels=channels)[0].numpy()
    np.testing.assert_allclose(np.concatenate(pieces, axis=-1), whole, atol=1e-6)


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "PCM_32"])
@pytest.mark.parametrize("channels", (1, 2))
def test_pieces_of_a_pipe_make_the_whole(tmp_path, subtype, channels):
    path = tmp_path / "a.wav"
    soundfile.write(path, sound(), 8000, subtype=subtype)

    class Pipe(io.RawIOBase):
        def __init__(self) -> None:
            self.inner = io.BytesIO(path.read_bytes())

        def read(self, size: int = -1) -> bytes:
            return self.inner.read(size)

    rate, pieces = stream_audio(Pipe(), channels, block=777)
    assert rate == 8000
    whole = read_audio(path, channels=channels)[0].numpy()
    np.testing.assert_allclose(np.concatenate(list(pieces), axis=-1), whole, atol=1e-7)


def test_what_cannot_be_streamed_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="No audio file"):
        stream_audio(tmp_path / "none.wav")
    (tmp_path / "text.wav").write_text("no sound")
    with pytest.raises(ValueError, match="could not be decoded"):
        stream_audio(tmp_path / "text.wav")
    with pytest.raises(ValueError, match="Standard input must be a WAV file"):
        stream_audio(io.BytesIO(b"no sound"))
    soundfile.write(tmp_path / "nan.wav", np.full(10, np.nan), 8000, subtype="FLOAT")
    with pytest.raises(ValueError, match="NaN or infinite"):
        list(stream_audio(tmp_path / "nan.wav")[1])
    soundfile.write(tmp_path / "three.wav", sound(10, 3), 8000)
    with pytest.raises(ValueError, match="has 3 channels"):
        list(stream_audio(tmp_path / "three.wav", 2)[1])
    eight = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 40, b"WAVE", b"fmt ", 16, 1, 1, 8000, 8000, 1, 8, b"data", 4)
    with pytest.raises(ValueError, match="16, 24 or 32 bits a sample, got 8"):
        stream_audio(io.BytesIO(eight + bytes(4)))


@pytest.mark.parametrize("channels", (1, 2))
@pytest.mark.parametrize("rates", [(8000, 22050), (44100, 8000), (8000, 8000)])
def test_a_resampled_stream_equals_the_whole(channels, rates):
    waveform = sound(20000, channels).T.astype(np.float32)
    waveform = waveform[0] if channels == 1 else waveform
    pieces = np.split(waveform, [1, 1, 500, 7000], axis=-1)
    made = np.concatenate(list(resample_stream(pieces, *rates, channels)), axis=-1)
    whole = resample(waveform, *rates)
    assert made.shape == whole.shape
    np.testing.assert_allclose(made, whole, atol=1e-5)
