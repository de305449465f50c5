"""From a log-mel back to a waveform without a network: magnitudes by the pseudo-inverse, phases by Griffin-Lim."""

from __future__ import annotations

import math

import torch

from melreformer_hf.audio.mel import MelConfig, mel_filter_bank, undo_log
from melreformer_hf.audio.stft import Transform, cached_table, extended_istft, extended_stft, istft

_SMALLEST = 1e-16


@cached_table
def _pseudo_inverse(config: MelConfig, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    # float64 on the CPU: the filter bank is badly conditioned, and not every device has that precision.
    return torch.linalg.pinv(mel_filter_bank(config, torch.float64, "cpu")).to(dtype).to(device)


def mel_pseudo_inverse(
    config: MelConfig, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
) -> torch.Tensor:
    """Pseudo-inverse of the mel filter bank, (n_fft // 2 + 1, num_mel_bins); shared, not to be changed."""
    return _pseudo_inverse(config, dtype, torch.device("cpu" if device is None else device))


def magnitude_from_log_mel(
    log_mel: torch.Tensor, config: MelConfig, minimum: float = 0.0, inverse: torch.Tensor | None = None
) -> torch.Tensor:
    """Least-squares magnitudes below a log-mel.

    Args:
        log_mel: (batch, mel, frame).
        config: its contract.
        minimum: smallest magnitude.
        inverse: (bin, mel) where the caller holds `mel_pseudo_inverse` itself.

    Returns:
        (batch, frame, bin) float32.
    """
    mel = undo_log(log_mel.float(), config).transpose(1, 2)
    inverse = mel_pseudo_inverse(config, mel.dtype, mel.device) if inverse is None else inverse
    # The pseudo-inverse draws some bins below zero; `minimum` also keeps the root's gradient finite.
    return (mel @ inverse.T).clamp(min=minimum**config.power) ** (1 / config.power)


def accelerated(rebuilt: torch.Tensor, previous: torch.Tensor | None, momentum: float) -> torch.Tensor:
    """What the next magnitudes are put on: a projection, driven on from the one before.

    Source: Perraudin, Balazs, Sondergaard, A fast Griffin-Lim algorithm (2013), algorithm 2.

    Args:
        rebuilt: (batch, frame, bin) complex, this projection.
        previous: the one before it, `None` at first.
        momentum: 0 is the classic algorithm.
    """
    if previous is None or not momentum:
        return rebuilt
    # c_n = t_n + a (t_n - t_(n-1)) = (1 + a) (t_n - a / (1 + a) t_(n-1)); the factor goes when the magnitudes are put
    # back.
    return torch.sub(rebuilt, previous, alpha=momentum / (1 + momentum))


def griffin_lim(
    log_mel: torch.Tensor,
    config: MelConfig,
    num_iterations: int = 64,
    momentum: float = 0.99,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Waveform of a log-mel by fast Griffin-Lim: the baseline that a vocoder has to beat.

    Magnitudes come from the pseudo-inverse, see `accelerated` for the source.

    Args:
        log_mel: (batch, mel, frame) under `config`.
        config: the mel contract, hop-aligned (`center=False`).
        num_iterations: consistency projections.
        momentum: acceleration, 0 is the classic algorithm.
        generator: source of the initial phases.

    Returns:
        (batch, frame * hop_length) float32.

    Raises:
        ValueError: `num_iterations` or `momentum` is out of range.
    """
    if num_iterations < 0 or not 0 <= momentum < 1:
        raise ValueError(
            f"griffin_lim needs num_iterations >= 0 and 0 <= momentum < 1, got {num_iterations} and {momentum}."
        )
    transform = Transform.of(config)
    magnitude = magnitude_from_log_mel(log_mel, config)
    phase = torch.rand(magnitude.shape, generator=generator, device=getattr(generator, "device", magnitude.device))
    spectrum = torch.polar(magnitude, phase.to(magnitude.device) * (2 * math.pi))
    previous = None
    for _ in range(num_iterations):
        rebuilt = extended_stft(extended_istft(spectrum, transform), transform)
        target, previous = accelerated(rebuilt, previous, momentum), rebuilt
        spectrum = target * (magnitude / target.abs().clamp(min=_SMALLEST))
    return istft(spectrum, transform)


__all__ = ["accelerated", "griffin_lim", "magnitude_from_log_mel", "mel_pseudo_inverse"]
