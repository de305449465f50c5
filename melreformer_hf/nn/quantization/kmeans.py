"""Samples of vectors, and k-means (Lloyd's iteration) in bounded memory."""

from __future__ import annotations

import math

import torch

from melreformer_hf.nn.quantization.search import nearest_codes


def sample_vectors(
    vectors: torch.Tensor, count: int, noise: float, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Draw different vectors; where there are too few, copies with uniform noise.

    Args:
        vectors: (vector, dim).
        count: how many to draw.
        noise: norm scale of the noise on copies, which keeps equal copies apart.
        generator: makes the draw repeatable; its device may differ from the vectors'.

    Returns:
        (count, dim).
    """
    device = vectors.device if generator is None else generator.device
    if len(vectors) < count:
        vectors = vectors.repeat(math.ceil(count / len(vectors)), 1)
        jitter = torch.rand(vectors.shape, generator=generator, device=device, dtype=vectors.dtype)
        vectors = vectors + jitter.to(vectors.device) * (noise / math.sqrt(vectors.shape[-1]))
    order = torch.randperm(len(vectors), generator=generator, device=device)[:count]
    return vectors[order.to(vectors.device)]


def cluster_sums(vectors: torch.Tensor, codes: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Number and sum of the vectors of every code: (code,), (code, dim) float32 (float64 stays)."""
    vectors = vectors if vectors.dtype == torch.float64 else vectors.float()
    counts = torch.bincount(codes, minlength=size).to(vectors.dtype)
    sums = vectors.new_zeros(size, vectors.shape[-1]).index_add_(0, codes, vectors)
    return counts, sums


@torch.no_grad()
def kmeans(
    vectors: torch.Tensor, size: int, iterations: int, generator: torch.Generator | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cluster vectors around `size` means, starting at vectors of the sample.

    A mean without vectors stays where it is. Distances are computed block by block, so that memory does not grow with
    the number of vectors times the number of means.

    Args:
        vectors: (vector, dim).
        size: number of means.
        iterations: Lloyd's iterations, at least one.
        generator: makes the start repeatable.

    Returns:
        means (size, dim) and the number of vectors of each (size,) at the last assignment.
    """
    means = sample_vectors(vectors, size, noise=1e-2, generator=generator)
    counts = vectors.new_zeros(size)
    for _ in range(iterations):
        counts, sums = cluster_sums(vectors, nearest_codes(vectors, means), size)
        means = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], means)
    return means, counts


__all__ = ["cluster_sums", "kmeans", "sample_vectors"]
