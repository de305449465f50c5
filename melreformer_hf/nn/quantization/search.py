"""Nearest codewords, block by block, and what is made of them: sums per code, samples, k-means."""

from __future__ import annotations

import math

import torch
from torch.nn.functional import normalize, pad

# Scores of one block on a CPU: small enough to stay in a shared cache, where the search for the largest reads them
# again; large enough that threads, which wait for each other after every block, seldom do.
CPU_BLOCK_BYTES = 1 << 23
# Elsewhere only the memory of the scores is bounded.
DEVICE_BLOCK_BYTES = 1 << 28
# On a CPU a maximum is far cheaper than its position: maxima of groups first, then the position inside one group.
GROUP = 64
GROUPED_FROM = 256


def rows_per_block(size: int, device: torch.device) -> int:
    """Vectors whose float32 scores against `size` codewords make one block."""
    budget = CPU_BLOCK_BYTES if device.type == "cpu" else DEVICE_BLOCK_BYTES
    return max(16, budget // (4 * size))


def _grouped_argmax(scores: torch.Tensor) -> torch.Tensor:
    """First position of the largest score of every row, (row, a multiple of GROUP) -> (row,)."""
    rows, groups = len(scores), scores.shape[1] // GROUP
    best = scores.view(rows, groups, GROUP).amax(2).argmax(1)
    chosen = scores.view(rows * groups, GROUP).index_select(0, torch.arange(rows) * groups + best)
    return best.mul_(GROUP).add_(chosen.argmax(1))


def _table(codewords: torch.Tensor, cosine: bool, grouped: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """What vectors are multiplied by, and what is added; rows that fill up the last group never win."""
    if cosine:
        table, offset = normalize(codewords, dim=-1), codewords.new_zeros(len(codewords))
    else:
        table, offset = codewords, codewords.square().sum(-1).mul_(-0.5)
    missing = -len(codewords) % GROUP if grouped else 0
    if missing:
        table, offset = pad(table, (0, 0, 0, missing)), pad(offset, (0, missing), value=-math.inf)
    return table, offset


@torch.no_grad()
def nearest_codes(vectors: torch.Tensor, codewords: torch.Tensor, cosine: bool = False) -> torch.Tensor:
    """Number of the nearest codeword of every vector, in float32 (float64 stays) whatever the input's type.

    The nearest codeword maximizes `x . e - |e|^2 / 2`, so the vectors' own norms are never computed.

    Args:
        vectors: (vector, dim).
        codewords: (codeword, dim).
        cosine: largest cosine instead of smallest Euclidean distance.

    Returns:
        (vector,) int64; the first of equals.
    """
    compiling = torch.compiler.is_compiling()
    grouped = vectors.device.type == "cpu" and len(codewords) >= GROUPED_FROM and not compiling
    # Autocast would round distances to bfloat16, where near codewords become equally near.
    with torch.autocast(vectors.device.type, enabled=False):
        wide = torch.promote_types(torch.float32, vectors.dtype)
        vectors, codewords = vectors.to(wide), codewords.to(wide)
        table, offset = _table(codewords, cosine, grouped)
        if compiling:  # a compiler blocks the product itself, and cannot trace buffers that are written in place
            return torch.addmm(offset, vectors, table.T).argmax(1)
        codes = torch.empty(len(vectors), dtype=torch.long, device=vectors.device)
        # One buffer for the scores of all blocks: allocating it anew would cost as much as the product.
        rows = min(rows_per_block(len(table), vectors.device), max(1, len(vectors)))
        scores = vectors.new_empty(rows, len(table))
        for start in range(0, len(vectors), rows):
            block = vectors[start : start + rows]
            found = torch.addmm(offset, block, table.T, out=scores[: len(block)])
            codes[start : start + rows] = _grouped_argmax(found) if grouped else found.argmax(1)
    return codes


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


def code_counts(codes: torch.Tensor, size: int, counted: torch.Tensor | None = None) -> torch.Tensor:
    """How often each code occurs: (vector,) int64 -> (code,) float32, exact up to 2 ** 24.

    Args:
        codes: (vector,) int64.
        size: number of codes.
        counted: (vector,) bool, which of them count; all by default.
    """
    # Not bincount, whose output size depends on the data, so that no graph could be captured.
    weights = torch.ones_like(codes, dtype=torch.float32) if counted is None else counted.float()
    return weights.new_zeros(size).scatter_add_(0, codes, weights)


def cluster_sums(vectors: torch.Tensor, codes: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Number and sum of the vectors of every code: (code,), (code, dim) float32 (float64 stays)."""
    vectors = vectors if vectors.dtype == torch.float64 else vectors.float()
    counts = code_counts(codes, size).to(vectors.dtype)
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
    for _ in range(iterations):  # Lloyd: assign to the nearest mean, move every mean to the middle of its vectors
        counts, sums = cluster_sums(vectors, nearest_codes(vectors, means), size)
        means = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], means)
    return means, counts


__all__ = ["cluster_sums", "code_counts", "kmeans", "nearest_codes", "rows_per_block", "sample_vectors"]
