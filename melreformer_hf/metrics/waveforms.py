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
    prediction, target = _checked(prediction, target)
    scale = (prediction * target).sum(-1, keepdim=True) / target.square().sum(-1, keepdim=True)
    wanted = scale * target
    return 10 * torch.log10(wanted.square().sum(-1) / (wanted - prediction).square().sum(-1))


def sdr(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Signal-to-distortion ratio in dB of whole recordings, 10 log10(|s|^2 / |s - x|^2): what MDX calls uSDR.

    Source: Mitsufuji et al., Music Demixing Challenge 2021 (arXiv 2108.13559), formula 1, without its small constants.

    Args:
        prediction: (..., sample).
        target: (..., sample).

    Returns:
        (...), infinite for the target itself, NaN where the target is silent.

    Raises:
        ValueError: the shapes differ.
    """
    prediction, target = _checked(prediction, target)
    power = target.square().sum(-1)
    ratio = 10 * torch.log10(power / (target - prediction).square().sum(-1))
    return ratio.masked_fill(power == 0, torch.nan)


def chunk_median_sdr(prediction: torch.Tensor, target: torch.Tensor, chunk: int) -> torch.Tensor:
    """Median of the ratios of successive chunks, without those whose target is silent.

    As SiSEC's figures, which are medians over seconds, but without the filter of 512 taps that BSSEval allows a
    prediction for nothing: values are lower than museval's.

    Args:
        prediction: (..., sample).
        target: (..., sample).
        chunk: samples; a rest at the end is left out, unless it is all there is.

    Returns:
        (...), NaN where every chunk of the target is silent.

    Raises:
        ValueError: the shapes differ, or `chunk` is below 1.
    """
    prediction, target = _checked(prediction, target)
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1 sample, got {chunk}.")
    size = min(chunk, target.shape[-1])
    return sdr(prediction.unfold(-1, size, size), target.unfold(-1, size, size)).nanmedian(-1).values


def _checked(prediction: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both in single precision.

    Raises:
        ValueError: the shapes differ.
    """
    if prediction.shape != target.shape or not prediction.ndim:
        raise ValueError(
            f"prediction and target must have the same shape (..., sample), got {tuple(prediction.shape)} and "
            f"{tuple(target.shape)}."
        )
    return prediction.float(), target.float()


__all__ = ["chunk_median_sdr", "sdr", "si_sdr"]
