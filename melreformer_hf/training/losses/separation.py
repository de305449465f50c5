"""Losses of separated waveforms that stay finite where a stem, or all of a recording, is silent."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from melreformer_hf.audio.stft import Transform, extend, map_frames, power

DEFAULT_RESOLUTIONS = (256, 1024, 4096)
# Of the mixture's power: what counts as silence beside it, 30 dB below.
_SHARE = 1e-3
_SMALLEST = 1e-8


def distortion_ratio(error: torch.Tensor, target: torch.Tensor, mixture: torch.Tensor) -> torch.Tensor:
    """Distortion-to-signal ratio of a stem in dB, bounded where the stem is silent or its estimate is perfect.

    10 log10((|e|^2 + c) / (|s|^2 + c)), where c is a thousandth of the mixture's power: a silent stem is asked to be
    silent beside the mixture, and nothing is gained by being better than 30 dB.

    Args:
        error: (..., sample), estimate minus target.
        target: (..., sample) the true stem.
        mixture: (..., sample).

    Returns:
        (...), lower is better.
    """
    floor = _SHARE * mixture.square().mean(-1) + _SMALLEST
    return 10 * torch.log10((error.square().mean(-1) + floor) / (target.square().mean(-1) + floor))


def spectral_share(
    error: torch.Tensor, mixture: torch.Tensor, windows: Sequence[int] = DEFAULT_RESOLUTIONS
) -> torch.Tensor:
    """Sum of the magnitudes of an error's spectrum as a share of the mixture's, averaged over windows and rows.

    As the complex spectra's L1 distance in several resolutions that band-split separators are trained with (Lu et al.,
    BS-RoFormer, arXiv 2309.02612), relative to the mixture, so that soft and loud recordings count alike.

    Args:
        error: (batch, sample); the errors of two stems that add up to the mixture are each other's negative.
        mixture: (batch, sample).
        windows: window lengths in samples; the hop is a quarter.

    Returns:
        scalar.
    """
    total = error.new_zeros(len(error))
    for size in windows:
        transform = Transform(size, size // 4, size)

        def magnitude(spectrum: torch.Tensor) -> torch.Tensor:
            return power(spectrum, _SMALLEST).sqrt()

        made, whole = (
            map_frames(extend(signal, transform, centered=True), transform, magnitude).mean((1, 2))
            for signal in (error, mixture)
        )
        total = total + made / whole
    return total.mean() / len(windows)


__all__ = ["DEFAULT_RESOLUTIONS", "distortion_ratio", "spectral_share"]
