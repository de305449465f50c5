"""Reading and writing audio with soundfile: WAV, FLAC, OGG and MP3, from paths or bytes, without ffmpeg."""

from __future__ import annotations

import io
import itertools
import os
import shutil
import wave
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from melreformer_hf._files import replacing

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")


def resample(waveform: np.ndarray, original: int, target: int) -> np.ndarray:
    """Resample (..., samples) from `original` to `target` samples per second with soxr's high quality."""
    _check_rates(original, target)
    if original == target:
        return waveform
    import soxr

    return np.ascontiguousarray(soxr.resample(waveform.T, original, target).T, dtype=waveform.dtype)


def resample_stream(
    chunks: Iterable[np.ndarray], original: int, target: int, channels: int = 1
) -> Iterator[np.ndarray]:
    """Resample a stream, float32 (samples,) of mono and (channel, samples) otherwise, as `resample` does the whole; lags a
    few milliseconds behind."""
    _check_rates(original, target)
    if original == target:
        yield from chunks
        return
    import soxr

    stream = soxr.ResampleStream(original, target, channels, dtype="float32")
    nothing = np.zeros(0 if channels == 1 else (channels, 0), dtype=np.float32)
    for chunk, last in itertools.chain(((chunk, False) for chunk in chunks), [(nothing, True)]):
        made = stream.resample_chunk(np.ascontiguousarray(chunk.T, dtype=np.float32), last=last)
        if len(made):
            yield np.ascontiguousarray(made.T)


def _check_rates(original: int, target: int) -> None:
    for name, rate in (("original", original), ("target", target)):
        if rate <= 0:
            raise ValueError(f"{name} must be a positive number of samples per second, got {rate}.")


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
    _finite(waveform, name)
    if sampling_rate is not None:
        waveform, rate = resample(waveform, rate, sampling_rate), sampling_rate
    return torch.from_numpy(waveform), rate


def audio_info(path: str | os.PathLike) -> tuple[int, int, int]:
    """(samples per second, channels, samples as its header claims) of an audio file.

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: it cannot be decoded.
    """
    import soundfile

    if not Path(path).is_file():
        raise FileNotFoundError(f"No audio file at {path}.")
    try:
        info = soundfile.info(str(path))
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise ValueError(f"{path} could not be decoded ({error}). Supported: WAV, FLAC, OGG and MP3.") from error
    return info.samplerate, info.channels, info.frames


def stream_audio(
    source: str | os.PathLike | BinaryIO, channels: int = 1, block: int = 1 << 15
) -> tuple[int, Iterator[np.ndarray]]:
    """Decode a file, or a WAV file that comes out of a pipe, piece by piece at constant memory.

    Args:
        source: path, or a pipe that is open for reading bytes.
        channels: as of `read_audio`.
        block: samples of a piece.

    Returns:
        (samples per second; pieces, float32, (samples,) of mono and (channel, samples) otherwise).

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: it cannot be decoded; later, at a piece: it breaks off, holds NaN or infinity, or has other channels.
    """
    if isinstance(source, (str, os.PathLike)):
        return _stream_file(Path(source), channels, block)
    return _stream_pipe(source, channels, block)


def _stream_file(path: Path, channels: int, block: int) -> tuple[int, Iterator[np.ndarray]]:
    import soundfile

    if not path.is_file():
        raise FileNotFoundError(f"No audio file at {path}.")
    try:
        file = soundfile.SoundFile(str(path))
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise ValueError(f"{path} could not be decoded ({error}). Supported: WAV, FLAC, OGG and MP3.") from error

    def pieces() -> Iterator[np.ndarray]:
        with file:
            while True:
                try:
                    data = file.read(block, dtype="float32", always_2d=True)
                except (soundfile.LibsndfileError, RuntimeError) as error:
                    raise ValueError(f"{path} breaks off after {file.tell()} samples ({error}).") from error
                if not len(data):
                    return
                yield _finite(to_channels(data, channels, str(path)), str(path))

    return file.samplerate, pieces()


def _stream_pipe(pipe: BinaryIO, channels: int, block: int) -> tuple[int, Iterator[np.ndarray]]:
    try:
        file = wave.open(pipe, "rb")  # noqa: SIM115  reads forward only, what soundfile does not
    except (wave.Error, EOFError) as error:
        raise ValueError(
            f"Standard input must be a WAV file of whole numbers, got something else ({error})."
        ) from error
    rate, width, found = file.getframerate(), file.getsampwidth(), file.getnchannels()
    if width not in (2, 3, 4):
        raise ValueError(f"Standard input must have 16, 24 or 32 bits a sample, got {8 * width}.")

    def pieces() -> Iterator[np.ndarray]:
        while raw := file.readframes(block):
            raw = raw[: len(raw) // (width * found) * width * found]
            # As the upper bytes of 32 bits, whatever the width.
            wide = np.zeros((len(raw) // width, 4), dtype=np.uint8)
            wide[:, 4 - width :] = np.frombuffer(raw, dtype=np.uint8).reshape(-1, width)
            data = wide.view("<i4").reshape(-1, found).astype(np.float32) / np.float32(1 << 31)
            yield to_channels(data, channels, "Standard input")

    return rate, pieces()


def _finite(waveform: np.ndarray, name: str) -> np.ndarray:
    if not np.isfinite(waveform).all():
        raise ValueError(f"{name} holds NaN or infinite samples.")
    return waveform


# Format and encoding of soundfile by suffix.
_ENCODINGS = {
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".ogg": ("OGG", "VORBIS"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
}
# MP3 has no other sampling rates.
_MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
# Blocks: the encoder of Vorbis overflows its stack when it is given many minutes at once.
_BLOCK = 1 << 16


def encoding_of(path: str | os.PathLike) -> tuple[str, str]:
    """Format and encoding of soundfile for a file name.

    Raises:
        ValueError: a suffix that is not written.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in _ENCODINGS:
        raise ValueError(f"An audio file must end in {', '.join(_ENCODINGS)}, got {str(path)!r}.")
    return _ENCODINGS[suffix]


def to_int16(samples: np.ndarray, gain: float = 1.0) -> np.ndarray:
    """Floats with full scale at 1 as 16-bit samples, rounded to the nearest; what is louder is clipped."""
    return np.rint(np.clip(samples * gain, -1.0, 1.0) * 32767).astype("<i2")


@contextmanager
def open_audio(
    file: str | os.PathLike | BinaryIO,
    name: str | os.PathLike,
    sampling_rate: int,
    channels: int = 1,
    encoding: str | None = None,
) -> Iterator[Callable[[torch.Tensor], None]]:
    """Write audio piece by piece, in the format that the suffix of `name` says.

    Args:
        file: to write to: a path, or an open file.
        name: whose suffix counts.
        sampling_rate: samples per second.
        channels: of the audio.
        encoding: soundfile's name of another encoding than the usual one; FLOAT keeps what is louder than full scale.

    Yields:
        a function that writes (channel, samples) float tensors; louder than full scale is clipped.

    Raises:
        ValueError: a suffix that is not written, or a sampling rate that MP3 does not have.
        OSError: the file cannot be written, for example because the disk is full.
    """
    import soundfile

    kind, subtype = encoding_of(name)
    subtype = encoding or subtype
    if kind == "MP3" and sampling_rate not in _MP3_RATES:
        raise ValueError(f"MP3 has the sampling rates {_MP3_RATES}, got {sampling_rate}. Write .wav or .flac.")
    target = os.fspath(file) if isinstance(file, (str, os.PathLike)) else file
    try:
        with soundfile.SoundFile(target, "w", sampling_rate, channels, subtype, format=kind) as sound:

            def write(piece: torch.Tensor) -> None:
                data = piece.detach().cpu().float()
                data = (data if subtype == "FLOAT" else data.clamp(-1, 1)).numpy().T
                if subtype == "PCM_16":
                    data = to_int16(data)  # libsndfile would round down
                for begin in range(0, len(data), _BLOCK):
                    sound.write(data[begin : begin + _BLOCK])

            yield write
    except soundfile.LibsndfileError as error:
        # libsndfile hides the system's reason; the likely one can be looked up.
        raise OSError(f"{name} could not be written: {error} {_reason(target)}".strip()) from error


def _reason(target: str | BinaryIO) -> str:
    if not isinstance(target, str):
        return ""
    folder = Path(target).parent
    if not folder.is_dir():
        return f"There is no folder {folder}."
    free = shutil.disk_usage(folder).free
    return f"The disk is full ({free / 1e6:.1f} MB are free)." if free < 1e6 else ""


def write_audio(path: str | os.PathLike, waveform: torch.Tensor, sampling_rate: int) -> Path:
    """Write an audio file, complete or not at all: .wav and .flac (16 bit), .ogg (Vorbis) or .mp3, by its suffix.

    A waveform whose peak exceeds full scale is scaled down as a whole rather than clipped.

    Args:
        path: the file; its folder is made when missing.
        waveform: (samples,) or (channel, samples), float, full scale at 1.
        sampling_rate: samples per second.

    Raises:
        ValueError: another suffix, NaN or infinite samples, or another shape.
    """
    path = Path(path)
    encoding_of(path)
    data = waveform.detach().cpu().float()
    if data.ndim not in (1, 2):
        raise ValueError(f"waveform must have shape (samples,) or (channel, samples), got {tuple(data.shape)}.")
    if not data.isfinite().all():
        raise ValueError("waveform must be finite, got NaN or infinite samples.")
    peak = data.abs().max().item() if data.numel() else 0.0
    if peak > 1.0:
        data = data / peak
    data = data[None] if data.ndim == 1 else data
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial, open_audio(partial, path, sampling_rate, len(data)) as write:
        write(data)
    return path


__all__ = [
    "AUDIO_SUFFIXES",
    "audio_info",
    "encoding_of",
    "open_audio",
    "read_audio",
    "resample",
    "resample_stream",
    "stream_audio",
    "to_channels",
    "to_int16",
    "write_audio",
]
