"""Nearest codewords: one fused product per block of vectors, blocks small enough for the caches."""

from __future__ import annotations

import torch
from torch.nn.functional import normalize

# Scores of one block on a CPU: they are read again by the arg max while they are in the second-level cache.
CPU_BLOCK_BYTES = 1 << 19
# Elsewhere only the memory of the scores is bounded.
DEVICE_BLOCK_BYTES = 1 << 28


def rows_per_block(size: int, device: torch.device) -> int:
    """Vectors whose float32 scores against `size` codewords make one block."""
    budget = CPU_BLOCK_BYTES if device.type == "cpu" else DEVICE_BLOCK_BYTES
    return max(16, budget // (4 * size))


@torch.no_grad()
def nearest_codes(vectors: torch.Tensor, codewords: torch.Tensor, cosine: bool = False) -> torch.Tensor:
    """Number of the nearest codeword of every vector, in float32 whatever the input's type.

    The nearest codeword maximises `x . e - |e|^2 / 2`, so the vectors' own norms are never computed.

    Args:
        vectors: (vector, dim).
        codewords: (codeword, dim).
        cosine: largest cosine instead of smallest Euclidean distance.

    Returns:
        (vector,) int64; the first of equals.
    """
    with torch.autocast(vectors.device.type, enabled=False):
        vectors, codewords = vectors.float(), codewords.float()
        if cosine:
            table, offset = normalize(codewords, dim=-1), codewords.new_zeros(len(codewords))
        else:
            table, offset = codewords, codewords.square().sum(-1).mul_(-0.5)
        codes = torch.empty(len(vectors), dtype=torch.long, device=vectors.device)
        rows = min(rows_per_block(len(table), vectors.device), max(1, len(vectors)))
        scores = vectors.new_empty(rows, len(table))
        for start in range(0, len(vectors), rows):
            block = vectors[start : start + rows]
            out = torch.addmm(offset, block, table.T, out=scores[: len(block)])
            torch.argmax(out, dim=1, out=codes[start : start + rows])
    return codes


__all__ = ["nearest_codes", "rows_per_block"]
