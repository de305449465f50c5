"""Spectral distances that trainings use as losses; they are the metrics of the same names."""

from __future__ import annotations

from melreformer_hf.metrics.spectral import log_mel_l1 as mel_l1_distance
from melreformer_hf.metrics.spectral import multi_resolution_stft_distance

__all__ = ["mel_l1_distance", "multi_resolution_stft_distance"]
