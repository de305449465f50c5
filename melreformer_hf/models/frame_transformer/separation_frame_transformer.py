"""From a recording to its stems with a mask on magnitudes, window by window."""

from __future__ import annotations

from collections.abc import Callable

import torch

from melreformer_hf.audio.stft import Transform, istft, stft
from melreformer_hf.nn.stems import Stems


def windows(num_frames: int, chunk_frames: int, context_frames: int) -> list[tuple[slice, slice]]:
    """Frames to compute and, among those, frames to keep.

    Args:
        num_frames: length of the recording.
        chunk_frames: frames kept of each window; the last one may keep fewer.
        context_frames: frames computed before and after those, as far as the recording goes.

    Returns:
        list of (frames of the recording, kept frames counted within those); the kept ones follow each other.
    """
    found = []
    for first in range(0, num_frames, chunk_frames):
        last = min(first + chunk_frames, num_frames)
        start, stop = max(0, first - context_frames), min(num_frames, last + context_frames)
        found.append((slice(start, stop), slice(first - start, last - start)))
    return found


def normalized_magnitudes(
    waveform: torch.Tensor, transform: Transform
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What the network reads of recordings, in training as in use.

    Args:
        waveform: (batch, channel, sample) float32, any length.
        transform: short-time Fourier transform.

    Returns:
        (batch, channel, bin, frame) magnitudes, the largest of each recording 1; the spectrum (batch * channel, frame, bin)
        complex; and what the magnitudes were divided by, (batch, 1, 1, 1).
    """
    batch, channels, samples = waveform.shape
    hop, least = transform.hop_length, transform.n_fft
    padded = max(least, -(-samples // hop) * hop)
    padded = -(-padded // hop) * hop
    # Whole hops, and at least one window; (batch, channel, sample) -> (batch * channel, sample).
    rows = torch.nn.functional.pad(waveform, (0, padded - samples)).flatten(0, 1)
    spectrum = stft(rows, transform)
    # (batch * channel, frame, bin) -> (batch, channel, bin, frame), the network's layout.
    magnitude = spectrum.abs().unflatten(0, (batch, channels)).transpose(2, 3)
    # Silence divides by the smallest number instead of zero and stays silence.
    loudest = magnitude.amax((1, 2, 3), keepdim=True).clamp(min=torch.finfo(magnitude.dtype).tiny)
    return magnitude / loudest, spectrum, loudest


def masked_stems(
    waveform: torch.Tensor,
    transform: Transform,
    mask_of: Callable[[torch.Tensor], torch.Tensor],
    chunk_frames: int,
    context_frames: int,
) -> Stems:
    """Split a recording by a soft mask on its magnitudes, with the mixture's phase.

    Args:
        waveform: (batch, channel, sample) float32, any length.
        transform: short-time Fourier transform.
        mask_of: (batch, channel, bin, frame) magnitudes, the largest of each recording 1 -> mask of the same shape,
            the share of the instrumental.
        chunk_frames: frames kept of each window.
        context_frames: frames before and after them that the network sees besides.

    Returns:
        both stems.
    """
    samples = waveform.shape[-1]
    magnitude, spectrum, _ = normalized_magnitudes(waveform, transform)
    pieces = [
        mask_of(magnitude[..., seen])[..., kept]
        for seen, kept in windows(magnitude.shape[-1], chunk_frames, context_frames)
    ]
    mask = torch.cat(pieces, dim=-1).transpose(2, 3).flatten(0, 1)
    # The mixture's phase for both: the mask scales complex values.
    instrumental = istft(spectrum * mask, transform)[:, :samples].unflatten(0, waveform.shape[:2])
    return Stems(vocals=waveform - instrumental, instrumental=instrumental)


__all__ = ["masked_stems", "normalized_magnitudes", "windows"]
