"""Reconstruction losses of codecs: channel averages of a decoder's stages, mel spectrograms of several windows.

Sources: LumenPallidium/audio_generation (the channel-average loss, and the form of the spectral one); Zeghidour et al.,
SoundStream (arXiv 2107.03312).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import interpolate, mse_loss

from melreformer_hf.audio.mel import MelConfig, mel_spectrogram
from melreformer_hf.audio.stft import Transform

DEFAULT_STAGE_WEIGHTS = (0.25, 0.5, 1.0, 1.25, 0.01, 2.99)
DEFAULT_MEL_WINDOWS = (64, 128, 256, 512, 1024, 2048)
_LOG_EPSILON = 1e-8
_SHORTEST_TRANSFORM = 512
_NUM_MEL_BINS = 64


def stage_target(waveform: torch.Tensor, num_positions: int) -> torch.Tensor:
    """What the channels of a decoder's stage should average to: every n-th sample, (batch, 1, position).

    Args:
        waveform: (batch, 1, sample).
        num_positions: length of the stage; the nearest samples before are taken, nothing is filtered.
    """
    return interpolate(waveform, size=num_positions, mode="nearest")


def channel_average_loss(
    stages: Sequence[torch.Tensor],
    waveform: torch.Tensor,
    weights: Sequence[float] = DEFAULT_STAGE_WEIGHTS,
) -> torch.Tensor:
    """Every stage of a decoder carries the waveform, subsampled, as the average of its channels.

    Args:
        stages: per stage a tensor (batch, channel, position), the output itself last.
        waveform: (batch, 1, sample), the target.
        weights: of the stages.

    Returns:
        scalar, the weighted sum of mean squared errors.

    Raises:
        ValueError: there is not one weight per stage, or a stage or the waveform has other axes.
    """
    if len(stages) != len(weights) or not stages:
        raise ValueError(f"weights must have one entry per stage, got {len(weights)} for {len(stages)} stages.")
    if waveform.ndim != 3 or waveform.shape[1] != 1:
        raise ValueError(f"waveform must be (batch, 1, sample), got {tuple(waveform.shape)}.")
    terms = []
    for index, (stage, weight) in enumerate(zip(stages, weights, strict=True)):
        if stage.ndim != 3 or stage.shape[0] != waveform.shape[0]:
            raise ValueError(
                f"stages[{index}] must be ({waveform.shape[0]}, channel, position), got {tuple(stage.shape)}."
            )
        average = stage.mean(dim=1, keepdim=True)  # (batch, 1, position)
        terms.append(weight * mse_loss(average, stage_target(waveform, average.shape[-1])))
    return torch.stack(terms).sum()


def spectrogram_distance(
    predictions: Sequence[torch.Tensor],
    targets: Sequence[torch.Tensor],
    log_weights: Sequence[float],
    logarithmic: bool = True,
) -> torch.Tensor:
    """Sum over spectrograms of the mean absolute error and the weighted mean squared error of the logarithms.

    Args:
        predictions: one power spectrogram of any shape per window.
        targets: the same.
        log_weights: weights of the squared errors.
        logarithmic: `False` takes the squared error of the spectrograms themselves.

    Raises:
        ValueError: the numbers of spectrograms and weights differ, or there are none.
    """
    if not predictions or not len(predictions) == len(targets) == len(log_weights):
        raise ValueError(
            "predictions, targets and log_weights must have one entry per window, got "
            f"{len(predictions)}, {len(targets)} and {len(log_weights)}."
        )
    terms = []
    for prediction, target, weight in zip(predictions, targets, log_weights, strict=True):
        # As in SoundStream: linear for what is loud, logarithmic for what is quiet.
        absolute = (prediction - target).abs().mean()
        if logarithmic:
            prediction, target = ((power + _LOG_EPSILON).log() for power in (prediction, target))
        terms.append(absolute + weight * mse_loss(prediction, target))
    return torch.stack(terms).sum()


def window_weights(windows: Sequence[int]) -> list[float]:
    """SoundStream's weights of the logarithmic terms: the root of half the window."""
    return [(window / 2) ** 0.5 for window in windows]


def multi_window_mel_distance(
    prediction: torch.Tensor,
    target: torch.Tensor,
    sampling_rate: int,
    windows: Sequence[int] = DEFAULT_MEL_WINDOWS,
) -> torch.Tensor:
    """`spectrogram_distance` of power mel spectrograms, 64 bands each, hops of a quarter of the window.

    Deviations from the sources: Slaney bands, spectra divided by the root of the sum of the squared window.

    Args:
        prediction: (batch, sample).
        target: (batch, sample).
        sampling_rate: samples per second.
        windows: window lengths in samples, multiples of 4; transforms are of 512 samples at least.

    Returns:
        scalar.

    Raises:
        ValueError: the shapes differ, a window is no multiple of 4, or the waveforms are too short for it.
    """
    if prediction.shape != target.shape or prediction.ndim != 2:
        raise ValueError(
            "prediction and target must both be (batch, sample), got "
            f"{tuple(prediction.shape)} and {tuple(target.shape)}."
        )
    if not windows or any(window % 4 or window < 4 for window in windows):
        raise ValueError(f"windows must be multiples of 4, at least one, got {tuple(windows)}.")
    pairs = []
    for window in windows:
        config = MelConfig(
            sampling_rate=sampling_rate,
            n_fft=max(window, _SHORTEST_TRANSFORM),  # 64 bands of a shorter one would be partly empty
            win_length=window,
            hop_length=window // 4,
            num_mel_bins=_NUM_MEL_BINS,
            power=2.0,
        )
        energy = Transform.of(config).window().square().sum().item()  # powers of all windows are then alike
        pairs.append([mel_spectrogram(waveform.float(), config) / energy for waveform in (prediction, target)])
    predicted, wanted = zip(*pairs, strict=True)
    return spectrogram_distance(predicted, wanted, window_weights(windows))


def si_sdr_loss(prediction: torch.Tensor, target: torch.Tensor, floor: float = 1e-4) -> torch.Tensor:
    """Negative scale-invariant signal-to-distortion ratio in dB (Le Roux et al., arXiv 1811.02508), mean over rows.

    Args:
        prediction: (batch, sample).
        target: (batch, sample).
        floor: root mean square that is added to target and distortion, so that silence has a finite one.

    Returns:
        scalar.
    """
    least = floor**2 * target.shape[-1]
    share = ((prediction * target).sum(-1) + least) / (target.square().sum(-1) + least)
    wanted = share[:, None] * target
    ratio = (wanted.square().sum(-1) + least) / ((prediction - wanted).square().sum(-1) + least)
    return -10 * ratio.log10().mean()


__all__ = [
    "DEFAULT_MEL_WINDOWS",
    "DEFAULT_STAGE_WEIGHTS",
    "channel_average_loss",
    "multi_window_mel_distance",
    "si_sdr_loss",
    "spectrogram_distance",
    "stage_target",
    "window_weights",
]
