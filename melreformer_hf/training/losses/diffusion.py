"""Diffusion loss of the idea model.

Source: the velocity loss of Salimans and Ho (arXiv 2202.00512), truncated in the manner of Min-SNR (arXiv 2303.09556).
Deviation: the weight is min(SNR, max_snr) + 1 instead of min(SNR, max_snr), because few-step samplers begin at pure
noise, where Min-SNR weighs nothing. The weight belongs to the error of the clean sample, so that networks which
predict the velocity and networks which predict the clean sample minimize the same quantity.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import SchedulerMixin
from torch import nn

PREDICTION_TYPES = ("sample", "v_prediction")


def signal_to_noise_ratio(scheduler: SchedulerMixin, timesteps: torch.Tensor) -> torch.Tensor:
    """Power of the signal over power of the noise, (batch,) float32, at each of `timesteps` (batch,)."""
    alpha = scheduler.alphas_cumprod.to(timesteps.device)[timesteps].float()  # share of the signal's power
    return alpha / (1 - alpha)


def _check(
    clean: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor, scheduler: SchedulerMixin, max_snr: float | None
) -> None:
    kind, steps = scheduler.config.prediction_type, scheduler.config.num_train_timesteps
    if kind not in PREDICTION_TYPES:
        raise ValueError(
            f"scheduler.config.prediction_type must be one of {PREDICTION_TYPES}, got {kind!r}: sampling begins at pure "
            "noise, where a prediction of the noise tells nothing about the clean sample."
        )
    if noise.shape != clean.shape:
        raise ValueError(f"noise must have the shape of clean, {tuple(clean.shape)}, got {tuple(noise.shape)}.")
    if timesteps.shape != clean.shape[:1] or timesteps.is_floating_point():
        raise ValueError(
            f"timesteps must be integers of shape ({clean.shape[0]},), got {timesteps.dtype} of shape "
            f"{tuple(timesteps.shape)}."
        )
    if timesteps.numel() and not 0 <= int(timesteps.min()) <= int(timesteps.max()) < steps:
        raise ValueError(f"timesteps must lie in [0, {steps}), got {int(timesteps.min())} to {int(timesteps.max())}.")
    if max_snr is not None and not max_snr > 0:
        raise ValueError(f"max_snr must be positive or None, got {max_snr}.")


def diffusion_loss(
    model: nn.Module,
    clean: torch.Tensor,
    log2_num_frames: torch.Tensor | None,
    scheduler: SchedulerMixin,
    noise: torch.Tensor,
    timesteps: torch.Tensor,
    max_snr: float | None = None,
    weigh: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """Weighted squared error of every row; the caller takes the mean.

    Args:
        model: called as `model(noisy, timesteps, log2_num_frames).sample`.
        clean: (batch, 1, mel, column) normalized ideas.
        log2_num_frames: (batch,) log2 of the durations in frames, NaN where withheld; `None` withholds all.
        scheduler: the noise schedule; its `prediction_type` says what `model` predicts.
        noise: standard normal, shaped like `clean`.
        timesteps: (batch,) int64.
        max_snr: signal-to-noise ratio beyond which weights grow no more; `None` gives the exact velocity loss.
        weigh: of the error before it is squared, to one of the same shape.

    Returns:
        (batch,) float32, whatever the precision of the network.

    Raises:
        ValueError: shapes differ, time steps lie outside the schedule, or the scheduler predicts something else.
    """
    _check(clean, noise, timesteps, scheduler, max_snr)
    predicted = model(scheduler.add_noise(clean, noise, timesteps), timesteps, log2_num_frames).sample.float()
    ratio = signal_to_noise_ratio(scheduler, timesteps)
    # SNR + 1 is the weight of the clean sample's error in the velocity loss (v = alpha * noise - sigma * clean).
    weight = (ratio if max_snr is None else ratio.clamp(max=max_snr)) + 1
    if scheduler.config.prediction_type == "v_prediction":
        # The velocity's error is sqrt(SNR + 1) times the clean sample's: the weight is divided out.
        target, weight = scheduler.get_velocity(clean, noise, timesteps), weight / (ratio + 1)
    else:
        target = clean
    error = predicted - target.float()
    return weight * (error if weigh is None else weigh(error)).square().flatten(1).mean(1)


__all__ = ["PREDICTION_TYPES", "diffusion_loss", "signal_to_noise_ratio"]
