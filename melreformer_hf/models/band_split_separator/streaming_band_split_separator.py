"""Spectra of a stream and back: a recording in chunks, frames as soon as they are complete, samples as soon as they are settled.

A recording is preceded by `n_fft - hop_length` zeros and followed by as many, so that every sample lies in the same
number of windows: the sum of their squares repeats every hop, at the ends of a recording, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from melreformer_hf.audio.stft import Transform, extended_stft, overlap_add


def num_frames(samples: int, transform: Transform) -> int:
    """Frames of a recording: those whose windows hold any of its samples."""
    return -(-samples // transform.hop_length) + transform.n_fft // transform.hop_length - 1


def whole_spectrum(waveform: torch.Tensor, transform: Transform) -> torch.Tensor:
    """Spectrum of a whole recording.

    Args:
        waveform: (batch, channel, sample) float32.
        transform: its windows overlap evenly.

    Returns:
        (batch, channel, frame, bin) complex, `num_frames` of them.
    """
    before, samples = transform.n_fft - transform.hop_length, waveform.shape[-1]
    total = (num_frames(samples, transform) - 1) * transform.hop_length + transform.n_fft
    padded = torch.nn.functional.pad(waveform, (before, total - before - samples))
    return extended_stft(padded.flatten(0, 1), transform).unflatten(0, waveform.shape[:2])


def stream_spectrum(chunks: Iterable[torch.Tensor], transform: Transform, block_frames: int) -> Iterator[torch.Tensor]:
    """The same of a stream.

    Args:
        chunks: (batch, channel, any number of samples each).
        transform: as above.
        block_frames: frames that are waited for, unless the stream ends.

    Yields:
        (batch, channel, frame, bin) complex, at least one frame.
    """
    hop, before, held, samples, given = transform.hop_length, transform.n_fft - transform.hop_length, None, 0, 0

    def spectrum(frames: int) -> torch.Tensor:
        nonlocal held, given
        part = held[..., : (frames - 1) * hop + transform.n_fft]
        held, given = held[..., frames * hop :], given + frames
        return extended_stft(part.flatten(0, 1), transform).unflatten(0, part.shape[:2])

    for chunk in chunks:
        samples += chunk.shape[-1]
        held = torch.nn.functional.pad(chunk, (before, 0)) if held is None else torch.cat([held, chunk], dim=-1)
        while held.shape[-1] >= (block_frames - 1) * hop + transform.n_fft:
            yield spectrum(block_frames)
    rest = num_frames(samples, transform) - given if samples else 0
    if rest > 0:
        missing = (rest - 1) * hop + transform.n_fft - held.shape[-1]
        held = torch.nn.functional.pad(held, (0, missing))
        yield spectrum(rest)


def frames_to_samples(
    spectrum: torch.Tensor, transform: Transform, begun: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Least-squares inverse of the spectra above, chunk by chunk.

    Args:
        spectrum: (batch, channel, frame, bin) complex.
        transform: as above.
        begun: what the chunk before returned; `None` begins a recording.

    Returns:
        (batch, channel, frame * hop) samples, `n_fft - hop_length` of which come before the first chunk's recording; and
        what its last frames began, (batch, channel, n_fft - hop_length).
    """
    hop, overlap = transform.hop_length, transform.n_fft - transform.hop_length
    window = transform.window(torch.float32, spectrum.device)
    frames = torch.fft.irfft(spectrum, n=transform.n_fft) * window
    signal = overlap_add(frames.flatten(0, 1), hop).unflatten(0, spectrum.shape[:2])
    if begun is not None:
        signal = torch.cat([signal[..., :overlap] + begun, signal[..., overlap:]], dim=-1)
    finished, begun = signal[..., : spectrum.shape[2] * hop], signal[..., spectrum.shape[2] * hop :]
    # The squares of the windows over a sample depend on its place within a hop alone.
    envelope = window.square().unflatten(0, (-1, hop)).sum(0)
    return (finished.unflatten(-1, (-1, hop)) / envelope).flatten(-2), begun


def stream_samples(spectra: Iterable[torch.Tensor], transform: Transform) -> Iterator[torch.Tensor]:
    """Samples of a stream of spectra, (batch, channel, some) each, without those before the recording."""
    begun, leading = None, transform.n_fft - transform.hop_length
    for spectrum in spectra:
        samples, begun = frames_to_samples(spectrum, transform, begun)
        dropped = min(leading, samples.shape[-1])
        leading -= dropped
        if samples.shape[-1] > dropped:
            yield samples[..., dropped:]


__all__ = ["frames_to_samples", "num_frames", "stream_samples", "stream_spectrum", "whole_spectrum"]
