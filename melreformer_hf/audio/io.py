"""Reading and writing audio with soundfile: WAV, FLAC, OGG and MP3, from paths or bytes, without ffmpeg."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import torch

from melreformer_hf._files import replacing

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")


def resample(waveform: np.ndarray, original: int, target: int) -> np.ndarray:
    """Resample (..., samples) from `original` to `target` samples per second with soxr's high quality."""
    for name, rate in (("original", original), ("target", target)):
        if rate <= 0:
            raise ValueError(f"{name} must be a positive number of samples per second, got {rate}.")
    if original == target:
        return waveform
    import soxr

    return np.ascontiguousarray(soxr.resample(waveform.T, original, target).T, dtype=waveform.dtype)


def to_channels(data: np.ndarray, channels: int, name: str) -> np.ndarray:
    """(samples, channel) to (samples,) for one channel and (channels, samples) otherwise."""
    found = data.shape[1]
    if channels == 1:
        return data.mean(axis=1)
    if found not in (1, channels):
        raise ValueError(f"{name} has {found} channels; {channels} are made of {channels} or of one.")
    return np.ascontiguousarray(np.broadcast_to(data, (len(data), channels)).T)


def read_audio(
    source: str | os.PathLike | bytes,
    sampling_rate: int | None = None,
    max_seconds: float | None = None,
    channels: int = 1,
) -> tuple[torch.Tensor, int]:
    """Decode an audio file.

    A WAV or MP3 file that was cut off gives the part that is there; a FLAC or OGG file that was cut off is refused.

    Args:
        source: path, or the bytes of a file.
        sampling_rate: samples per second of the result; `None` keeps the file's own.
        max_seconds: longer files are refused, before more of them than that is decoded.
        channels: 1 mixes down to mono; more are what the file has, or its one channel repeated.

    Returns:
        (waveform of shape (samples,), of several channels (channel, samples), float32, full scale at 1; samples per
        second).

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: the file cannot be decoded, is empty, truncated to nothing, too long, holds NaN or infinity, or
            another number of channels.
    """
    import soundfile

    name = "the given bytes" if isinstance(source, bytes) else str(source)
    if not isinstance(source, bytes) and not Path(source).is_file():
        raise FileNotFoundError(f"No audio file at {name}.")
    try:
        with soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else str(source)) as file:
            rate, limit = file.samplerate, -1 if max_seconds is None else int(max_seconds * file.samplerate) + 1
            claimed = file.frames
            data = file.read(limit, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise ValueError(
            f"{name} could not be decoded ({error}). Supported: WAV, FLAC, OGG and MP3 that are complete."
        ) from error
    if max_seconds is not None and data.shape[0] > max_seconds * rate:
        raise ValueError(
            f"{name} lasts {max(claimed, data.shape[0]) / rate:.0f} s; at most {max_seconds:g} s are accepted."
        )
    waveform = to_channels(data, channels, name)
    if waveform.size == 0:
        raise ValueError(f"{name} holds no samples.")
    if not np.isfinite(waveform).all():
        raise ValueError(f"{name} holds NaN or infinite samples.")
    if sampling_rate is not None:
        waveform, rate = resample(waveform, rate, sampling_rate), sampling_rate
    return torch.from_numpy(waveform), rate


def write_wav(path: str | os.PathLike, waveform: torch.Tensor, sampling_rate: int) -> Path:
    """Write a 16-bit WAV file, complete or not at all.

    A waveform whose peak exceeds full scale is scaled down as a whole rather than clipped.

    Args:
        path: the file; its folder must exist.
        waveform: (samples,) or (channel, samples), float, full scale at 1.
        sampling_rate: samples per second.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: NaN or infinite samples, or another shape.
    """
    import soundfile

    path = Path(path)
    data = waveform.detach().cpu().float()
    if data.ndim not in (1, 2):
        raise ValueError(f"waveform must have shape (samples,) or (channel, samples), got {tuple(data.shape)}.")
    if not data.isfinite().all():
        raise ValueError("waveform must be finite, got NaN or infinite samples.")
    peak = data.abs().max().item() if data.numel() else 0.0
    if peak > 1.0:
        data = data / peak
    with replacing(path) as partial:
        soundfile.write(str(partial), data.numpy().T, sampling_rate, format="WAV", subtype="PCM_16")
    return path


__all__ = ["AUDIO_SUFFIXES", "read_audio", "resample", "to_channels", "write_wav"]
