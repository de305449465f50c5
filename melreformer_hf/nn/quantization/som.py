"""Self-organizing maps: codebooks on a grid, whose codewords learn together with their neighbors.

Source: Irie, Csordas, Schmidhuber (Kohonen-VAE, arXiv 2302.07950).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from transformers import initialization as init
from transformers.utils import ModelOutput

from melreformer_hf.nn.quantization.codebook import Codebook
from melreformer_hf.nn.quantization.options import CodebookOptions, check_choice
from melreformer_hf.nn.quantization.residual import VectorQuantizer

# Reach of a grid cell's eight neighbors, between sqrt(2) and 2.
ADJACENT = 1.5


def grid_shape_of(size: int, num_axes: int) -> tuple[int, ...]:
    """The most nearly square grid of so many cells: 512 on two axes -> (32, 16)."""
    if num_axes not in (1, 2):
        raise ValueError(f"num_axes must be 1 or 2, got {num_axes}. Give grid_shape for other grids.")
    if num_axes == 1:
        return (size,)
    # The largest divisor up to the square root is the shorter side.
    short = next(side for side in range(math.isqrt(size), 0, -1) if size % side == 0)
    return size // short, short


def grid_coordinates(shape: Sequence[int], device: torch.device | None = None) -> torch.Tensor:
    """Place of every codeword, the first axis fastest: (codeword, axis) int64."""
    # meshgrid lets the last axis run fastest; reversed twice, the first one does, as the paper's code numbers them.
    axes = torch.meshgrid(*(torch.arange(side, device=device) for side in reversed(shape)), indexing="ij")
    return torch.stack([axis.flatten() for axis in reversed(axes)], dim=1)


def grid_distances(shape: Sequence[int], device: torch.device | None = None) -> torch.Tensor:
    """Euclidean distances between the places of all codewords: (codeword, codeword) float32."""
    places = grid_coordinates(shape, device).float()
    return (places[:, None] - places[None]).square().sum(-1).sqrt()


@dataclass(frozen=True, kw_only=True)
class Neighborhood:
    """How far, and how long, a vector moves the neighbors of its codeword (Kohonen-VAE, arXiv 2302.07950).

    Args:
        kernel: "hard": all codewords within `radius` grid units get 1 / (1 + shrink step); "gaussian":
            exp(-distance (1 + shrink step) / radius), the distance not squared. The codeword itself always gets 1, so
            that the map tends to plain vector quantization.
        radius: in grid units; 0: no neighbors, exactly plain vector quantization.
        shrink: speed at which the neighborhood fades with the training steps.
        num_axes: of the automatic grid, 1 or 2.
        grid_shape: sides of the grid, their product the number of codewords; `None`: the most nearly square.
        weight: of the pull on neighbors, with `update="gradient"`.
    """

    kernel: Literal["hard", "gaussian"] = "hard"
    radius: float = ADJACENT
    shrink: float = 0.1
    num_axes: int = 2
    grid_shape: tuple[int, ...] | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        check_choice("kernel", self.kernel, ("hard", "gaussian"))
        for name in ("radius", "shrink", "weight"):
            if not getattr(self, name) >= 0.0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}.")

    def shape_for(self, size: int) -> tuple[int, ...]:
        """Grid of a codebook.

        Raises:
            ValueError: `grid_shape` has another number of cells.
        """
        shape = grid_shape_of(size, self.num_axes) if self.grid_shape is None else tuple(self.grid_shape)
        if math.prod(shape) != size or min(shape) < 1:
            raise ValueError(f"grid_shape must have {size} cells, one per codeword, got {shape}.")
        return shape

    def codebook(self, size: int, dim: int, options: CodebookOptions) -> SomCodebook:
        """A codebook of so many codewords on this grid."""
        return SomCodebook(size, dim, options, self)

    def influence(self, distances: torch.Tensor, step: torch.Tensor | int) -> torch.Tensor:
        """Share of a vector that every other codeword gets: (codeword, codeword), ones on the diagonal."""
        fade = 1.0 + self.shrink * step
        # No neighbors: the matrix becomes the identity below, and the map plain vector quantization to the bit.
        if self.radius == 0:
            weights = torch.zeros_like(distances)
        elif self.kernel == "hard":
            weights = (distances <= self.radius).to(distances.dtype) / fade
        else:
            weights = torch.exp(-distances * fade / self.radius)
        return weights.fill_diagonal_(1.0)


class SomCodebook(Codebook):
    """A codebook on a grid. `step` () int64 counts the training steps and is saved with the weights.

    Args:
        size: number of codewords.
        dim: width of a codeword.
        options: how it learns.
        neighborhood: grid and reach.
    """

    def __init__(self, size: int, dim: int, options: CodebookOptions, neighborhood: Neighborhood) -> None:
        super().__init__(size, dim, options)
        self.neighborhood, self.grid_shape = neighborhood, neighborhood.shape_for(size)
        self.register_buffer("step", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def reset_parameters(self, bound: float | None = None) -> None:
        """Random codewords, each counted once, see `Codebook`; step 0."""
        super().reset_parameters(bound)
        # The base class resets itself before this class has its buffer.
        if "step" in self._buffers:
            init.zeros_(self.step)

    def influence(self) -> torch.Tensor:
        """(codeword, codeword) share of a vector that every codeword gets at this step."""
        # Computed from the shape each time: cheaper than a search, and no buffer that loading would have to restore.
        distances = grid_distances(self.grid_shape, self.cluster_size.device)
        return self.neighborhood.influence(distances, self.step)

    def spread(self, counts: torch.Tensor, sums: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Statistics with the neighbors' share; one training step passes."""
        # Row i of the influence deals a vector of code i out to all codewords: n'_j = sum_i a_ij n_i, sums alike.
        weights = self.influence().to(counts.dtype)
        self.step += 1
        if self.options.update == "gradient":
            return counts, sums
        return weights.T @ counts, weights.T @ sums

    def topology_loss(self, counts: torch.Tensor) -> torch.Tensor | None:
        """Mean over vectors of the neighbors' squared distances to the vector's (fixed) codeword, by influence."""
        if self.options.update != "gradient":
            return None
        # sum_ij a_ij |w_j - sg(w_i)|^2 expanded into products, so that memory is the grid's square and not that times
        # the width. The common part of all codewords cancels; it is taken away first, or the difference of two large
        # sums would lose it to rounding.
        with torch.autocast(counts.device.type, enabled=False):
            moving = self.codewords.float()
            moving = moving - moving.detach().mean(0)
            fixed = moving.detach()
            weights = self.influence() * (counts / counts.sum().clamp(min=1))[:, None]
            apart = (weights.sum(0) * moving.square().sum(1)).sum() + (weights.sum(1) * fixed.square().sum(1)).sum()
            return self.neighborhood.weight * (apart - 2.0 * (moving * (weights.T @ fixed)).sum())


@dataclass
class TopologyOutput(ModelOutput):
    """Measures of a map; all scalars.

    Args:
        quantization_error: mean distance between a vector and its codeword (Kohonen).
        topographic_error: share of vectors whose two nearest codewords are no grid neighbors (Kiviluoto 1996); 0 is
            best.
        neighborhood_correlation: rank correlation between distances on the grid and distances between codewords, over
            all pairs; 1 is best, 0 no order.
        neighbor_distance_ratio: mean distance between grid neighbors over the mean of all pairs; small is ordered, 1
            no order.
        jitter_ratio: mean squared error when every code is replaced by a random grid neighbor's, over the error when
            it is replaced by any random code; small is ordered, 1 no order.
    """

    quantization_error: torch.FloatTensor | None = None
    topographic_error: torch.FloatTensor | None = None
    neighborhood_correlation: torch.FloatTensor | None = None
    neighbor_distance_ratio: torch.FloatTensor | None = None
    jitter_ratio: torch.FloatTensor | None = None


def _ranks(values: torch.Tensor) -> torch.Tensor:
    """Mean rank of equal values: (value,) -> (value,) float64 on the CPU."""
    # On the CPU: ranks of many pairs need float64, which not every device has.
    _, inverse, counts = torch.unique(values.cpu(), return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    # Equal values share the mean of their ranks, as Spearman's correlation asks.
    return (last - (counts.double() - 1) / 2)[inverse]


def rank_correlation(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Spearman's correlation of two (value,) tensors; 0 where one of them is constant."""
    device = first.device
    first, second = (ranks - ranks.mean() for ranks in (_ranks(first), _ranks(second)))
    scale = first.norm() * second.norm()
    return (first @ second / scale if scale > 0 else scale).float().to(device)


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
    # Distances in the space of the vectors; `distances` are those on the grid.
    between = torch.cdist(codewords, codewords)
    adjacent = (distances <= ADJACENT) & (distances > 0)
    pairs = torch.triu_indices(len(codewords), len(codewords), 1, device=codewords.device).unbind(0)
    return TopologyOutput(
        quantization_error=near[:, 0].mean(),
        topographic_error=(~adjacent[order[:, 0], order[:, 1]]).float().mean(),
        neighborhood_correlation=rank_correlation(distances[pairs], between[pairs]),
        neighbor_distance_ratio=between[adjacent].mean() / between[pairs].mean(),
        jitter_ratio=_jitter_ratio(vectors, codewords, order[:, 0], adjacent),
    )


def _jitter_ratio(
    vectors: torch.Tensor, codewords: torch.Tensor, codes: torch.Tensor, adjacent: torch.Tensor
) -> torch.Tensor:
    """The expectation over all neighbors, and over all other codewords, is exact: nothing is drawn."""
    errors = torch.cdist(vectors, codewords).square()
    others = torch.ones_like(adjacent).fill_diagonal_(False)
    moved = [(errors * mask[codes]).sum(1) / mask[codes].sum(1) for mask in (adjacent, others)]
    return moved[0].mean() / moved[1].mean()


class SomQuantizer(VectorQuantizer):
    """One codebook on a grid, whose codewords learn together with their neighbors (Kohonen-VAE, arXiv 2302.07950).

    The neighborhood acts on learning alone; codes and outputs are those of plain vector quantization. With `radius=0`
    the whole is `VectorQuantizer(update="ema")`, to the bit. With `update="gradient"` neighbors are pulled towards the
    chosen codeword by a loss.

    Args:
        dim: width of the input.
        codebook_size: number of codewords.
        codebook_dim: width of factorized codewords, see `ResidualVectorQuantizer`.
        update: "ema" or "gradient".
        neighborhood: grid and reach; the default is the paper's hard neighborhood of eight cells.
        commitment_weight: as in `ResidualVectorQuantizer`.
        **options: further arguments of `ResidualVectorQuantizer`. Codewords start at random and are not restarted
            unless asked for: the neighbors bring unused ones along.

    Example:

        >>> import torch
        >>> from melreformer_hf.nn.quantization import SomQuantizer
        >>> quantizer = SomQuantizer(dim=2, codebook_size=16, decay=0.8).train()
        >>> for _ in range(50):
        ...     quantizer.accumulate(quantizer(torch.rand(1, 2, 64)))
        ...     learned = quantizer.update_codebooks()
        >>> quantizer.grid_shape
        (4, 4)
        >>> measures = quantizer.eval().topology(torch.rand(1, 2, 256))
        >>> bool(measures.neighborhood_correlation > 0)
        True
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        codebook_dim: int | None = None,
        update: Literal["ema", "gradient"] = "ema",
        *,
        neighborhood: Neighborhood | None = None,
        commitment_weight: float = 0.25,
        **options,
    ) -> None:
        options = {"kmeans_iterations": 0, "restart_threshold": 0.0, **options}
        super().__init__(
            dim,
            codebook_size,
            codebook_dim,
            update,
            commitment_weight=commitment_weight,
            neighborhood=neighborhood or Neighborhood(),
            **options,
        )

    @property
    def grid_shape(self) -> tuple[int, ...]:
        """Sides of the grid; codeword `x + y * grid_shape[0]` is at (x, y)."""
        return self.codebook(0).grid_shape

    @torch.no_grad()
    def topology(self, hidden: torch.Tensor) -> TopologyOutput:
        """Measures of the map's order on (batch, dim, frame)."""
        latent = self._project_in(0, self._flat(hidden))
        return topology(latent, self.codebook(0).codewords, grid_distances(self.grid_shape))


__all__ = [
    "ADJACENT",
    "Neighborhood",
    "SomCodebook",
    "SomQuantizer",
    "TopologyOutput",
    "grid_coordinates",
    "grid_distances",
    "grid_shape_of",
    "rank_correlation",
    "topology",
]
