"""Distances of waveforms sample by sample."""

from __future__ import annotations

import torch


def si_sdr(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Scale-invariant signal-to-distortion ratio in dB.

    10 log10(|a s|^2 / |a s - x|^2) with the target s, the prediction x and a = <x, s> / |s|^2.
    Source: Le Roux, Wisdom, Erdogan, Hershey, SDR - half-baked or well done? (arXiv 1811.02508), formula 5. No mean is
    subtracted.

    Args:
        prediction: (..., sample).
        target: (..., sample).

    Returns:
        (...), infinite for a multiple of the target, NaN where the target is silent.

    Raises:
        ValueError: the shapes differ.
    """
    if prediction.shape != target.shape or not prediction.ndim:
        raise ValueError(
            f"prediction and target must have the same shape (..., sample), got {tuple(prediction.shape)} and "
            f"{tuple(target.shape)}."
        )
    prediction, target = prediction.float(), target.float()
    scale = (prediction * target).sum(-1, keepdim=True) / target.square().sum(-1, keepdim=True)
    wanted = scale * target
    return 10 * torch.log10(wanted.square().sum(-1) / (wanted - prediction).square().sum(-1))


__all__ = ["si_sdr"]
