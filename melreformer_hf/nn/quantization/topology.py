"""How well the grid of a self-organising map keeps the order of the vectors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput

from melreformer_hf.nn.quantization.som_codebook import ADJACENT


@dataclass
class TopologyOutput(ModelOutput):
    """Measures of a map; all scalars.

    Args:
        quantization_error: mean distance between a vector and its codeword (Kohonen).
        topographic_error: share of vectors whose two nearest codewords are no grid neighbours (Kiviluoto 1996); 0 is
            best.
        neighbourhood_correlation: rank correlation between distances on the grid and distances between codewords, over
            all pairs; 1 is best, 0 no order.
        neighbour_distance_ratio: mean distance between grid neighbours over the mean of all pairs; small is ordered, 1
            no order.
        jitter_ratio: mean squared error when every code is replaced by a random grid neighbour's, over the error when
            it is replaced by any random code; small is ordered, 1 no order.
    """

    quantization_error: torch.FloatTensor | None = None
    topographic_error: torch.FloatTensor | None = None
    neighbourhood_correlation: torch.FloatTensor | None = None
    neighbour_distance_ratio: torch.FloatTensor | None = None
    jitter_ratio: torch.FloatTensor | None = None


def _ranks(values: torch.Tensor) -> torch.Tensor:
    """Mean rank of equal values: (value,) -> (value,) float64."""
    _, inverse, counts = torch.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts.double() - 1) / 2)[inverse]


def rank_correlation(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Spearman's correlation of two (value,) tensors; 0 where one of them is constant."""
    first, second = (_ranks(values) - _ranks(values).mean() for values in (first, second))
    scale = first.norm() * second.norm()
    return (first @ second / scale if scale > 0 else scale).float()


@torch.no_grad()
def topology(vectors: torch.Tensor, codewords: torch.Tensor, distances: torch.Tensor) -> TopologyOutput:
    """Measure a map.

    Args:
        vectors: (vector, dim).
        codewords: (codeword, dim), two or more.
        distances: (codeword, codeword) on the grid.

    Raises:
        ValueError: there are no vectors, or fewer than two codewords.
    """
    if not len(vectors) or len(codewords) < 2:
        raise ValueError(f"Measures need a vector and two codewords, got {len(vectors)} and {len(codewords)}.")
    vectors, codewords = vectors.float(), codewords.float()
    distances = distances.to(codewords.device)
    near, order = torch.cdist(vectors, codewords).topk(2, largest=False)
    between = torch.cdist(codewords, codewords)
    adjacent = (distances <= ADJACENT) & (distances > 0)
    pairs = torch.triu_indices(len(codewords), len(codewords), 1, device=codewords.device).unbind(0)
    return TopologyOutput(
        quantization_error=near[:, 0].mean(),
        topographic_error=(~adjacent[order[:, 0], order[:, 1]]).float().mean(),
        neighbourhood_correlation=rank_correlation(distances[pairs], between[pairs]),
        neighbour_distance_ratio=between[adjacent].mean() / between[pairs].mean(),
        jitter_ratio=_jitter_ratio(vectors, codewords, order[:, 0], adjacent),
    )


def _jitter_ratio(
    vectors: torch.Tensor, codewords: torch.Tensor, codes: torch.Tensor, adjacent: torch.Tensor
) -> torch.Tensor:
    """The expectation over all neighbours, and over all other codewords, is exact: nothing is drawn."""
    errors = torch.cdist(vectors, codewords).square()
    others = torch.ones_like(adjacent).fill_diagonal_(False)
    moved = [(errors * mask[codes]).sum(1) / mask[codes].sum(1) for mask in (adjacent, others)]
    return moved[0].mean() / moved[1].mean()


__all__ = ["TopologyOutput", "rank_correlation", "topology"]
