"""Distances between waveforms by their spectra; differentiable, so that trainings use them as losses, too.

Every distance is defined per row of a batch and averaged over the rows: a batch has the same value in one process as
in two that hold half of it each.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from melreformer_hf.audio.mel import MelConfig, log_mel_spectrogram
from melreformer_hf.audio.stft import Transform, extend, map_frames, power

DEFAULT_WINDOWS = (128, 256, 512, 1024, 2048)
_SMALLEST_POWER = 1e-10  # of a magnitude of 1e-5
_QUIETEST_TARGET = 0.1  # 20 dB below the prediction


def _check_pair(prediction: torch.Tensor, target: torch.Tensor) -> None:
    if prediction.shape != target.shape or prediction.ndim != 2:
        raise ValueError(
            "prediction and target must both be (batch, sample), got "
            f"{tuple(prediction.shape)} and {tuple(target.shape)}."
        )


def stft_magnitude(waveform: torch.Tensor, window_size: int) -> torch.Tensor:
    """Centered magnitude spectrogram, (batch, bin, frame), hop a quarter of the window; at least 1e-5."""
    transform = Transform(window_size, window_size // 4, window_size)

    def magnitude(spectrum: torch.Tensor) -> torch.Tensor:
        # The clamp is inside the root: its gradient at zero would be infinite.
        return power(spectrum).clamp(min=_SMALLEST_POWER).sqrt()

    return map_frames(extend(waveform, transform, centered=True), transform, magnitude).transpose(1, 2)


def magnitude_distance(predicted: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Spectral convergence plus mean absolute difference of log magnitudes: one window of the distance below.

    Args:
        predicted: (batch, bin, frame) magnitudes above zero, the axes after the first in any order.
        wanted: the same.

    Returns:
        (batch,).
    """
    size = torch.linalg.vector_norm(wanted, dim=(1, 2))
    # A silent target would divide by nothing. The bound is a constant to the gradient, which still asks for less sound.
    bound = _QUIETEST_TARGET * torch.linalg.vector_norm(predicted.detach(), dim=(1, 2))
    convergence = torch.linalg.vector_norm(wanted - predicted, dim=(1, 2)) / torch.maximum(size, bound)
    return convergence + (predicted.log() - wanted.log()).abs().mean(dim=(1, 2))


def multi_resolution_stft_distance(
    prediction: torch.Tensor, target: torch.Tensor, windows: Sequence[int] = DEFAULT_WINDOWS
) -> torch.Tensor:
    """Spectral convergence plus mean absolute difference of log magnitudes, averaged over windows and rows.

    Source: Yamamoto, Song, Kim, Parallel WaveGAN (arXiv 1910.11480), formulas 4 to 6. Deviations: the convergence
    |target - prediction| / |target| is taken row by row; where the target is more than 20 dB softer than the
    prediction it is divided by a tenth of the prediction's norm, so that silent targets keep it below 11; the hop is
    always a quarter of the window; magnitudes below 1e-5 count as 1e-5.

    Args:
        prediction: (batch, sample).
        target: (batch, sample).
        windows: window lengths in samples.

    Returns:
        scalar, zero for equal waveforms, differentiable.

    Raises:
        ValueError: the shapes differ or are no batch of waveforms, or there is no window.
    """
    _check_pair(prediction, target)
    if not windows:
        raise ValueError(f"windows must hold at least one window length, got {windows!r}.")
    prediction, target = prediction.float(), target.float()
    total = prediction.new_zeros(len(prediction))
    for size in windows:
        total = total + magnitude_distance(stft_magnitude(prediction, size), stft_magnitude(target, size))
    return total.mean() / len(windows)


def log_mel_l1(prediction: torch.Tensor, target: torch.Tensor, config: MelConfig | None = None) -> torch.Tensor:
    """Mean absolute difference of log-mels, in the contract's log unit (nats for natural logarithms).

    Args:
        prediction: (batch, sample) waveform, or its log-mel (batch, mel, frame).
        target: the same, waveform or log-mel.
        config: the mel contract; needed where one of the two is a waveform.

    Returns:
        scalar, zero for equals, differentiable.

    Raises:
        ValueError: other shapes, a waveform without a contract, or log-mels of different sizes.
    """
    mels = [_as_log_mel(value, config, name) for value, name in ((prediction, "prediction"), (target, "target"))]
    if mels[0].shape != mels[1].shape:
        shapes = tuple(prediction.shape), tuple(target.shape)
        raise ValueError(
            f"prediction and target must belong to log-mels of one shape, got {shapes[0]} and {shapes[1]}."
        )
    return (mels[0] - mels[1]).abs().mean()


def _as_log_mel(value: torch.Tensor, config: MelConfig | None, name: str) -> torch.Tensor:
    if value.ndim == 3:
        return value.float()
    if value.ndim != 2 or config is None:
        raise ValueError(
            f"{name} must be a log-mel (batch, mel, frame), or a waveform (batch, sample) with a MelConfig as config, "
            f"got shape {tuple(value.shape)} and config {config!r}."
        )
    return log_mel_spectrogram(value.float(), config)


__all__ = ["DEFAULT_WINDOWS", "log_mel_l1", "magnitude_distance", "multi_resolution_stft_distance", "stft_magnitude"]
