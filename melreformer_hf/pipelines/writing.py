"""Audio that goes to a file while it is made: at constant memory, at its final level, and kept when it is stopped."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from melreformer_hf._files import partial_of
from melreformer_hf.audio.io import encoding_of, open_audio, to_int16
from melreformer_hf.pipelines.outputs import check_peak, peak_gain

_BLOCK = 1 << 18
_HEADER = 44


@dataclass
class Written:
    """What came of a stream.

    Args:
        path: the file.
        num_samples: its length in samples.
        stopped: what ended it too early, an interrupt or an error of the disk; `None` if it is whole.
    """

    path: Path
    num_samples: int
    stopped: BaseException | None = None


class _Spool:
    """Raw float32 samples on disk until the loudest of them is known."""

    def __init__(self, path: Path, channels: int) -> None:
        self.path, self.channels = path, channels
        self.file = open(path, "w+b")  # noqa: SIM115 (closed by `close`)
        self.num_samples, self.peak = 0, 0.0

    def write(self, chunk: torch.Tensor) -> None:
        """Append (channel, sample)."""
        data = chunk.detach().cpu().float()
        if not data.isfinite().all():
            raise ValueError("The audio holds NaN or infinite samples; the model's weights may be damaged.")
        self.file.write(data.numpy().T.tobytes())
        self.file.flush()
        self.num_samples += data.shape[-1]
        self.peak = max(self.peak, data.abs().max().item() if data.numel() else 0.0)

    def blocks(self) -> Iterable[np.ndarray]:
        """(sample, channel) float32 blocks of the samples that are whole."""
        for first in range(0, self.num_samples, _BLOCK):
            count = min(_BLOCK, self.num_samples - first)
            self.file.seek(4 * self.channels * first)
            yield np.frombuffer(self.file.read(4 * self.channels * count), np.float32).reshape(count, self.channels)

    def become_wav(self, gain: float, rate: int) -> None:
        """Turn into a 16-bit WAV file where it lies: half as large, so a full disk does not matter.

        Writing never overtakes reading: block k is read from 4 k, and written to 2 k behind a header of 44 bytes.
        """
        head = wav_header(self.num_samples, self.channels, rate)
        for number, block in enumerate(self.blocks()):
            data = to_int16(block, gain).tobytes()
            self.file.seek(0 if number == 0 else _HEADER + 2 * self.channels * _BLOCK * number)
            self.file.write(head + data if number == 0 else data)
        if self.num_samples == 0:
            self.file.write(head)
        self.file.truncate(_HEADER + 2 * self.channels * self.num_samples)

    def close(self) -> None:
        self.file.close()


def wav_header(num_samples: int, channels: int, rate: int) -> bytes:
    """The 44 bytes before the samples of a 16-bit WAV file."""
    size = 2 * channels * num_samples
    form = struct.pack("<4sI4s4sIHHIIHH", b"RIFF", 36 + size, b"WAVE", b"fmt ", 16, 1, channels, rate,
                       2 * channels * rate, 2 * channels, 16)  # fmt: skip
    return form + struct.pack("<4sI", b"data", size)


def write_stream(
    chunks: Iterable[torch.Tensor],
    path: str | os.PathLike,
    sampling_rate: int,
    peak_db: float | None = -1.0,
    on_chunk: Callable[[torch.Tensor], None] | None = None,
    channels: int = 1,
) -> Written:
    """Write audio while it is made.

    What was made when an interrupt or an error of the disk comes is kept, as a file that is complete in itself. If there
    is no room for another format, it is a WAV file.

    Args:
        chunks: (1, channel, sample) or (channel, sample), one after another.
        path: .wav, .flac, .ogg or .mp3; its folder is made when missing.
        sampling_rate: samples per second.
        peak_db: level of the loudest sample; `None` keeps that of the chunks (what is above full scale is scaled down).
        on_chunk: told every chunk after it was written.
        channels: of the audio.

    Raises:
        ValueError: an unknown suffix, a level above 0, samples that are not finite.
        OSError, KeyboardInterrupt: before anything was made.
    """
    path = Path(path)
    encoding_of(path)
    check_peak(peak_db)
    path.parent.mkdir(parents=True, exist_ok=True)
    spool, stopped = _Spool(partial_of(path), channels), None
    try:
        try:
            for chunk in chunks:
                spool.write(chunk.reshape(channels, -1))
                if on_chunk is not None:
                    on_chunk(chunk)
        except (KeyboardInterrupt, OSError) as error:
            if spool.num_samples == 0:
                raise
            stopped = error
        gain = 1.0 / max(1.0, spool.peak) if peak_db is None else peak_gain(spool.peak, peak_db)
        path, failed = _finish(spool, path, sampling_rate, gain)
        return Written(path, spool.num_samples, stopped or failed)
    finally:
        spool.close()
        spool.path.unlink(missing_ok=True)


def _finish(spool: _Spool, path: Path, rate: int, gain: float) -> tuple[Path, OSError | None]:
    """Give the spool its final format and name; the name, and what made it a WAV file in place of another."""
    failed = None
    if path.suffix.lower() != ".wav":
        encoded = partial_of(path.with_name(f"{path.stem}-encoded{path.suffix}"))
        try:
            with open_audio(encoded, path, rate, spool.channels) as write:
                for block in spool.blocks():
                    write(torch.from_numpy(block * gain).T)
            os.replace(encoded, path)
            return path, None
        except OSError as error:
            failed, path = error, path.with_suffix(".wav")
        finally:
            encoded.unlink(missing_ok=True)
    spool.become_wav(gain, rate)
    spool.close()
    os.replace(spool.path, path)
    return path, failed


def write_to_pipe(
    chunks: Iterable[torch.Tensor],
    pipe: BinaryIO,
    num_samples: int,
    sampling_rate: int,
    gain: float,
    on_chunk: Callable[[torch.Tensor], None] | None = None,
    channels: int = 1,
) -> None:
    """Write a WAV file of known length to an open pipe while its audio is made; louder than full scale is clipped."""
    pipe.write(wav_header(num_samples, channels, sampling_rate))
    for chunk in chunks:
        pipe.write(to_int16(chunk.reshape(channels, -1).detach().cpu().float().numpy().T, gain).tobytes())
        pipe.flush()
        if on_chunk is not None:
            on_chunk(chunk)


__all__ = ["Written", "wav_header", "write_stream", "write_to_pipe"]
