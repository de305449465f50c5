"""Spectral distances between waveforms: losses while training, metrics while validating."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch

from melreformer_hf.audio.mel import MelConfig, log_mel_spectrogram

DEFAULT_WINDOWS = (128, 256, 512, 1024, 2048)
_SMALLEST_POWER = 1e-10


def _check_pair(prediction: torch.Tensor, target: torch.Tensor) -> None:
    if prediction.shape != target.shape or prediction.ndim != 2:
        raise ValueError(
            "prediction and target must both be (batch, sample), got "
            f"{tuple(prediction.shape)} and {tuple(target.shape)}."
        )


@functools.lru_cache(maxsize=32)
def _window(size: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    with torch.inference_mode(False):
        return torch.hann_window(size, dtype=dtype, device=device)


def stft_magnitude(waveform: torch.Tensor, window_size: int) -> torch.Tensor:
    """Centred magnitude spectrogram, (batch, bin, frame), hop a quarter of the window."""
    window = _window(window_size, waveform.dtype, waveform.device)
    spectrum = torch.stft(
        waveform, window_size, window_size // 4, window_size, window, pad_mode="reflect", return_complex=True
    )
    return torch.view_as_real(spectrum).square().sum(-1).clamp(min=_SMALLEST_POWER).sqrt()


def multi_resolution_stft_distance(
    prediction: torch.Tensor, target: torch.Tensor, windows: Sequence[int] = DEFAULT_WINDOWS
) -> torch.Tensor:
    """Spectral convergence plus mean absolute difference of log magnitudes, averaged over the windows.

    Source: Yamamoto, Song, Kim, Parallel WaveGAN (arXiv 1910.11480). Deviations: the convergence is taken over the
    whole batch, the hop is always a quarter of the window, magnitudes below 1e-5 count as 1e-5.

    Args:
        prediction: (batch, sample).
        target: (batch, sample).
        windows: window lengths in samples.

    Returns:
        scalar, zero for equal waveforms, differentiable.
    """
    _check_pair(prediction, target)
    if not windows:
        raise ValueError(f"windows must hold at least one window length, got {windows!r}.")
    prediction, target = prediction.float(), target.float()
    total = prediction.new_zeros(())
    for size in windows:
        predicted, wanted = stft_magnitude(prediction, size), stft_magnitude(target, size)
        convergence = torch.linalg.vector_norm(wanted - predicted) / torch.linalg.vector_norm(wanted)
        total = total + convergence + (predicted.log() - wanted.log()).abs().mean()
    return total / len(windows)


def mel_l1_distance(prediction: torch.Tensor, target: torch.Tensor, config: MelConfig) -> torch.Tensor:
    """Mean absolute difference of log-mels, in the contract's log unit (nats for natural logarithms).

    Args:
        prediction: (batch, sample).
        target: (batch, sample), or its log-mel (batch, mel, frame).
        config: the mel contract.
    """
    if target.ndim == 2:
        _check_pair(prediction, target)
        target = log_mel_spectrogram(target.float(), config)
    return (log_mel_spectrogram(prediction.float(), config) - target.float()).abs().mean()


__all__ = ["DEFAULT_WINDOWS", "mel_l1_distance", "multi_resolution_stft_distance", "stft_magnitude"]
