"""Recordings of any rate to stems of the same rate, piece by piece, at constant memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from torch import nn

from melreformer_hf._files import replacing
from melreformer_hf.audio.io import encoding_of, open_audio, resample_stream
from melreformer_hf.nn.stems import Stems

MAX_CHANNELS = 2


def check_channels(channels: int, name: str = "The recording") -> None:
    """Refuse what is neither mono nor stereo.

    Raises:
        ValueError: names how many channels there are.
    """
    if not 1 <= channels <= MAX_CHANNELS:
        raise ValueError(
            f"{name} must have 1 or 2 channels, got {channels}. Mix it down to stereo first, or separate its channels in "
            "pairs."
        )


def in_model_layout(piece: torch.Tensor, channels: int) -> torch.Tensor:
    """(channel of the recording, sample) as a model of so many channels takes it, (batch, channels, sample)."""
    if channels == 1:
        return piece[:, None]  # every channel by itself
    return piece.expand(channels, -1)[None]


def in_recording_layout(stem: torch.Tensor, channels: int) -> torch.Tensor:
    """What `in_model_layout` did, undone: (batch, channel, sample) -> (channels, sample)."""
    rows = stem.flatten(0, 1)
    return rows if len(rows) == channels else rows.mean(0, keepdim=True)


def separate_stream(
    model: nn.Module, pieces: Iterable[np.ndarray], rate: int, channels: int, block_frames: int | None = None
) -> Iterator[Stems]:
    """Separate a recording while it is read.

    What lies above half the model's sampling rate is in no voice that it knows: it stays in the instrumental.

    Args:
        model: a separator; one that cannot stream (`FrameTransformerModel`) hears the whole recording first.
        pieces: float32, (sample,) of mono and (2, sample) of stereo.
        rate: of the pieces, in samples per second.
        channels: of the pieces.
        block_frames: see `BandSplitSeparatorModel.stream`.

    Yields:
        `Stems(vocals, instrumental)`, (channel, some samples) float32 each; they add up to the recording.
    """
    config, device = model.config, next(model.parameters()).device
    waiting: list[np.ndarray] = []

    def heard() -> Iterator[np.ndarray]:
        for piece in pieces:
            waiting.append(piece.reshape(channels, -1))
            yield piece

    def chunks() -> Iterator[torch.Tensor]:
        for piece in resample_stream(heard(), rate, config.sampling_rate, channels):
            # A copy: pieces that are views of a file's block cannot be written to, which torch warns of.
            yield in_model_layout(torch.tensor(piece.reshape(channels, -1), device=device), config.num_audio_channels)

    def vocals() -> Iterator[np.ndarray]:
        for stems in _stems(model, chunks(), block_frames):
            stem = in_recording_layout(stems.vocals, channels).cpu().numpy()
            yield stem[0] if channels == 1 else stem

    for made in resample_stream(vocals(), config.sampling_rate, rate, channels):
        mixture = np.concatenate(waiting, axis=-1)
        stem = made.reshape(channels, -1)[:, : mixture.shape[-1]]
        waiting[:] = [mixture[:, stem.shape[-1] :]]
        yield _both(mixture[:, : stem.shape[-1]], stem)
    # Resampling there and back may lose a sample or two at the very end.
    rest = np.concatenate(waiting, axis=-1) if waiting else np.zeros((channels, 0), dtype=np.float32)
    if rest.shape[-1]:
        yield _both(rest, np.zeros_like(rest))


def _stems(model: nn.Module, chunks: Iterable[torch.Tensor], block_frames: int | None) -> Iterator[Stems]:
    if hasattr(model, "stream"):
        yield from model.stream(chunks, block_frames)
        return
    parts = list(chunks)
    if parts:
        yield model.separate(torch.cat(parts, dim=-1))


def write_stems(
    stems: Iterable[Stems],
    folder: Path,
    suffix: str,
    sampling_rate: int,
    channels: int,
    on_stems: Callable[[Stems], None] | None = None,
) -> list[Path]:
    """Write stems while they are made; both files appear when they are complete, or neither.

    Args:
        stems: (channel, some samples) each.
        folder: for `vocals` and `instrumental`; made when missing.
        suffix: of the files: .wav (32-bit float), .flac, .ogg or .mp3; all but the first clip what is too loud.
        sampling_rate: samples per second.
        channels: of the stems.
        on_stems: told what was written.

    Raises:
        ValueError: another suffix, or a sampling rate that MP3 does not have.
        OSError: the files cannot be written, for example because the disk is full.
    """
    paths = [folder / f"{name}{suffix}" for name in Stems._fields]
    encoding = "FLOAT" if encoding_of(paths[0])[0] == "WAV" else None
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        partial = [stack.enter_context(replacing(path)) for path in paths]
        writers = [
            stack.enter_context(open_audio(file, path, sampling_rate, channels, encoding))
            for file, path in zip(partial, paths, strict=True)
        ]
        for piece in stems:
            for write, stem in zip(writers, piece, strict=True):
                write(stem)
            if on_stems is not None:
                on_stems(piece)
    return paths


def _both(mixture: np.ndarray, vocals: np.ndarray) -> Stems:
    return Stems(torch.from_numpy(np.ascontiguousarray(vocals)), torch.from_numpy(mixture - vocals))


__all__ = [
    "MAX_CHANNELS",
    "check_channels",
    "in_model_layout",
    "in_recording_layout",
    "separate_stream",
    "write_stems",
]
