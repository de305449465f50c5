"""Metrics: plain functions on tensors, and a folder each that `evaluate.load` reads.

The functions are what recipes, `melreformer evaluate` and the benchmarks report; the folders wrap the same functions.
Names are imported when they are first used.

spectral: distances of waveforms or log-mels; mels: sharpness, seams, drift of log-mels; waveforms: SDR and SI-SDR; figures: attack,
pulse, chroma, quiet frames and level of recordings; samplers: what many draws are worth; distributions: sets against sets;
embeddings: what such sets are compared in; codes: codec use; transcription: notes that were heard against notes that were
played; notes: statistics of music; note_copies: what it repeats of other music; ngrams: what counting can predict of
sequences.
"""

from __future__ import annotations

import importlib
from pathlib import Path

_EXPORTS: dict[str, str] = {
    "AudioModelEmbedding": "embeddings",
    "EventIndex": "note_copies",
    "FrechetResult": "distributions",
    "LogMelStatistics": "embeddings",
    "Ngram": "ngrams",
    "NoteEarEmbedding": "embeddings",
    "audible_bins": "mels",
    "bits_per_second": "codes",
    "chunk_median_sdr": "waveforms",
    "codebook_perplexity": "codes",
    "codebook_usage": "codes",
    "crps": "samplers",
    "drift": "mels",
    "duration_ks": "distributions",
    "entropy_bits_per_second": "codes",
    "frechet_audio_distance": "distributions",
    "frechet_distance": "distributions",
    "frechet_floor": "distributions",
    "inter_onset_histogram": "notes",
    "key_stability": "notes",
    "log_mel_l1": "spectral",
    "magnitude_distance": "spectral",
    "mean_scores": "transcription",
    "mel_statistics_distance": "mels",
    "multi_resolution_stft_distance": "spectral",
    "nearest_neighbor_distance": "distributions",
    "nested_contexts": "ngrams",
    "note_density": "notes",
    "note_events": "note_copies",
    "note_polyphony": "notes",
    "note_rows": "transcription",
    "note_statistics": "notes",
    "note_statistics_distance": "notes",
    "pitch_class_entropy": "notes",
    "sdr": "waveforms",
    "seam": "mels",
    "sharpness": "mels",
    "si_sdr": "waveforms",
    "sound_figures": "figures",
    "sound_figures_distance": "figures",
    "transcription_scores": "transcription",
    "wasserstein_distance": "notes",
}

__all__ = sorted([*_EXPORTS, "module_folder", "module_names"])


def module_names() -> list[str]:
    """Names of the metrics that `evaluate.load` can read."""
    return sorted(path.parent.name for path in Path(__file__).parent.glob("*/README.md"))


def module_folder(name: str) -> str:
    """Folder of a metric for `evaluate.load`.

    Raises:
        ValueError: no metric of this name.
    """
    if name not in module_names():
        raise ValueError(f"There is no metric {name!r}; there are: {', '.join(module_names())}.")
    return str(Path(__file__).parent / name)


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_EXPORTS))
