"""Nearest codewords: one fused product per block of vectors, blocks small enough for the caches."""

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

    The nearest codeword maximises `x . e - |e|^2 / 2`, so the vectors' own norms are never computed.

    Args:
        vectors: (vector, dim).
        codewords: (codeword, dim).
        cosine: largest cosine instead of smallest Euclidean distance.

    Returns:
        (vector,) int64; the first of equals.
    """
    grouped = vectors.device.type == "cpu" and len(codewords) >= GROUPED_FROM
    with torch.autocast(vectors.device.type, enabled=False):
        wide = torch.promote_types(torch.float32, vectors.dtype)
        vectors, codewords = vectors.to(wide), codewords.to(wide)
        table, offset = _table(codewords, cosine, grouped)
        codes = torch.empty(len(vectors), dtype=torch.long, device=vectors.device)
        rows = min(rows_per_block(len(table), vectors.device), max(1, len(vectors)))
        scores = vectors.new_empty(rows, len(table))
        for start in range(0, len(vectors), rows):
            block = vectors[start : start + rows]
            found = torch.addmm(offset, block, table.T, out=scores[: len(block)])
            codes[start : start + rows] = _grouped_argmax(found) if grouped else found.argmax(1)
    return codes


__all__ = ["nearest_codes", "rows_per_block"]
