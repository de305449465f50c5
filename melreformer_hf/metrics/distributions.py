"""Sets against sets: Frechet distance, durations, and how near generated pieces are to training pieces."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import torch


class Embedding(Protocol):
    """Waveforms to vectors; see `embeddings` for two."""

    name: str

    def __call__(self, waveforms: Sequence[torch.Tensor], sampling_rate: int) -> torch.Tensor:
        """(sample,) waveforms to (waveform, feature)."""


@dataclasses.dataclass(frozen=True)
class FrechetResult:
    """A Frechet distance with what is needed to read it.

    Args:
        distance: generated against reference.
        floor: reference against reference: mean over random halvings of the reference. Two halves of real recordings
            have this distance only because they are few; a distance near it means that nothing more can be told.
        num_generated: waveforms.
        num_reference: waveforms.
        embedding: name of what was compared.
    """

    distance: float
    floor: float
    num_generated: int
    num_reference: int
    embedding: str

    def __str__(self) -> str:
        return (
            f"Frechet distance {self.distance:.4g} (n = {self.num_generated} generated, {self.num_reference} real; "
            f"embedding {self.embedding}; real against real {self.floor:.4g})"
        )


def _vectors(values: torch.Tensor, name: str, least: int) -> torch.Tensor:
    if values.ndim != 2 or len(values) < least or not values.isfinite().all():
        raise ValueError(
            f"{name} must be finite vectors (item, feature), at least {least} of them, got shape {tuple(values.shape)}."
        )
    return values.detach().cpu().double()  # on the CPU: some devices have no float64


def frechet_distance(first: torch.Tensor, second: torch.Tensor) -> float:
    """Frechet distance between Gaussians fitted to two sets of vectors.

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), with unbiased covariances. Source: Dowson and Landau (1982); for audio
    Kilgour et al. (arXiv 1812.08466). The trace of the root is the sum of the singular values of X1 X2^T, X the
    centered vectors, which is exact for fewer vectors than features, where matrix roots lose their way.

    Args:
        first: (item, feature), at least two.
        second: (item, feature), at least two.

    Raises:
        ValueError: other shapes, or values that are not finite.
    """
    first, second = _vectors(first, "first", 2), _vectors(second, "second", 2)
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"Both sets must have the same features, got {first.shape[1]} and {second.shape[1]}.")
    centered = [(values - values.mean(0)) / (len(values) - 1) ** 0.5 for values in (first, second)]
    # C = A^T A with A the centered rows; an R of fewer rows has the same A^T A.
    roots = [torch.linalg.qr(rows, mode="r").R if len(rows) > rows.shape[1] else rows for rows in centered]
    cross = torch.linalg.svdvals(roots[0] @ roots[1].T).sum()
    spread = sum(rows.square().sum() for rows in centered)
    return max(0.0, ((first.mean(0) - second.mean(0)).square().sum() + spread - 2 * cross).item())


def frechet_floor(vectors: torch.Tensor, halvings: int = 8, seed: int = 0) -> float:
    """Mean Frechet distance between random halves of one set: what a distance of so few items cannot go below.

    Args:
        vectors: (item, feature), at least four.
        halvings: that are averaged over.
        seed: of the halvings.

    Raises:
        ValueError: other shapes, or values that are not finite.
    """
    vectors, generator, found = _vectors(vectors, "vectors", 4), torch.Generator().manual_seed(seed), []
    for _ in range(halvings):
        order, half = torch.randperm(len(vectors), generator=generator), len(vectors) // 2
        found.append(frechet_distance(vectors[order[:half]], vectors[order[half:]]))
    return sum(found) / len(found)


def frechet_audio_distance(
    generated: Sequence[torch.Tensor],
    reference: Sequence[torch.Tensor],
    sampling_rate: int,
    embedding: Embedding | None = None,
    *,
    halvings: int = 8,
    seed: int = 0,
) -> FrechetResult:
    """Frechet distance of generated audio from real audio, with its real-against-real floor.

    Args:
        generated: (sample,) waveforms.
        reference: (sample,) waveforms of real recordings, at least four.
        sampling_rate: samples per second of all of them.
        embedding: what is compared; default `LogMelStatistics()`, which needs no download. Distances compare only
            within one embedding.
        halvings: random halvings of the reference that the floor is averaged over.
        seed: of the halvings.

    Raises:
        ValueError: too few waveforms.
    """
    if embedding is None:
        from melreformer_hf.metrics.embeddings import LogMelStatistics

        embedding = LogMelStatistics()
    ours = _vectors(embedding(generated, sampling_rate), "generated", 2)
    real = _vectors(embedding(reference, sampling_rate), "reference", 4)
    floor = frechet_floor(real, halvings, seed)
    return FrechetResult(frechet_distance(ours, real), floor, len(ours), len(real), embedding.name)


def duration_ks(first: torch.Tensor, second: torch.Tensor) -> float:
    """Two-sample Kolmogorov-Smirnov statistic of durations: the largest gap between their distribution functions.

    Args:
        first: (item,) durations, in any unit.
        second: (item,) durations in the same unit.

    Returns:
        0 (equal distributions) to 1.

    Raises:
        ValueError: a set is empty or no vector.
    """
    for name, values in (("first", first), ("second", second)):
        if values.ndim != 1 or not len(values):
            raise ValueError(f"{name} must be (item,) with at least one duration, got shape {tuple(values.shape)}.")
    first, second = first.cpu().double().sort().values, second.cpu().double().sort().values
    places = torch.cat([first, second])
    shares = [torch.searchsorted(values, places, right=True) / len(values) for values in (first, second)]
    return (shares[0] - shares[1]).abs().max().item()


def nearest_neighbor_distance(samples: torch.Tensor, training: torch.Tensor, rows: int = 256) -> torch.Tensor:
    """Distance of every sample to the nearest training item: far smaller than that of held-out items means copies.

    Args:
        samples: (item, feature) vectors: embeddings, or flattened mels.
        training: (item, feature).
        rows: samples that are compared at once.

    Returns:
        (item,) Euclidean distances.

    Raises:
        ValueError: other shapes.
    """
    samples, training = _vectors(samples, "samples", 1), _vectors(training, "training", 1)
    if samples.shape[1] != training.shape[1]:
        raise ValueError(f"Both sets must have the same features, got {samples.shape[1]} and {training.shape[1]}.")
    # Without the expansion |a|^2 - 2ab + |b|^2, which makes a copy's distance of zero a rounding error.
    exact = "donot_use_mm_for_euclid_dist"
    parts = [torch.cdist(part, training, compute_mode=exact).amin(1) for part in samples.split(rows)]
    return torch.cat(parts).float()


__all__ = [
    "Embedding",
    "FrechetResult",
    "duration_ks",
    "frechet_audio_distance",
    "frechet_distance",
    "frechet_floor",
    "nearest_neighbor_distance",
]
