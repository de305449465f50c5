"""Codebooks whose codewords live on a grid and move together with their neighbours (self-organising maps)."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from transformers import initialization as init

from melreformer_hf.nn.quantization.codebook import Codebook
from melreformer_hf.nn.quantization.options import CodebookOptions, check_choice

# Reach of a grid cell's eight neighbours, between sqrt(2) and 2.
ADJACENT = 1.5


def grid_shape_of(size: int, num_axes: int) -> tuple[int, ...]:
    """The most nearly square grid of so many cells: 512 on two axes -> (32, 16)."""
    if num_axes not in (1, 2):
        raise ValueError(f"num_axes must be 1 or 2, got {num_axes}. Give grid_shape for other grids.")
    if num_axes == 1:
        return (size,)
    short = next(side for side in range(math.isqrt(size), 0, -1) if size % side == 0)
    return size // short, short


def grid_coordinates(shape: Sequence[int]) -> torch.Tensor:
    """Place of every codeword, the first axis fastest: (codeword, axis) int64."""
    axes = torch.meshgrid(*(torch.arange(side) for side in reversed(shape)), indexing="ij")
    return torch.stack([axis.flatten() for axis in reversed(axes)], dim=1)


def grid_distances(shape: Sequence[int]) -> torch.Tensor:
    """Euclidean distances between the places of all codewords: (codeword, codeword) float32 on the CPU."""
    return _distances(tuple(shape)).clone()


@functools.lru_cache(maxsize=8)
def _distances(shape: tuple[int, ...]) -> torch.Tensor:
    with torch.device("cpu"):
        places = grid_coordinates(shape).float()
    return (places[:, None] - places[None]).square().sum(-1).sqrt()


@dataclass(frozen=True, kw_only=True)
class Neighbourhood:
    """How far, and how long, a vector moves the neighbours of its codeword (Kohonen-VAE, arXiv 2302.07950).

    Args:
        kernel: "hard": all codewords within `radius` grid units get 1 / (1 + shrink step); "gaussian":
            exp(-distance (1 + shrink step) / radius), the distance not squared. The codeword itself always gets 1, so
            that the map tends to plain vector quantisation.
        radius: in grid units; 0: no neighbours, exactly plain vector quantisation.
        shrink: speed at which the neighbourhood fades with the training steps.
        num_axes: of the automatic grid, 1 or 2.
        grid_shape: sides of the grid, their product the number of codewords; `None`: the most nearly square.
        weight: of the pull on neighbours, with `update="gradient"`.
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

    def influence(self, distances: torch.Tensor, step: torch.Tensor | int) -> torch.Tensor:
        """Share of a vector that every other codeword gets: (codeword, codeword), ones on the diagonal."""
        fade = 1.0 + self.shrink * step
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
        neighbourhood: grid and reach.
    """

    def __init__(self, size: int, dim: int, options: CodebookOptions, neighbourhood: Neighbourhood) -> None:
        super().__init__(size, dim, options)
        self.neighbourhood, self.grid_shape = neighbourhood, neighbourhood.shape_for(size)
        self.register_buffer("step", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Random codewords, each counted once; step 0."""
        super().reset_parameters()
        if "step" in self._buffers:
            init.zeros_(self.step)

    def influence(self) -> torch.Tensor:
        """(codeword, codeword) share of a vector that every codeword gets at this step."""
        return self.neighbourhood.influence(_distances(self.grid_shape).to(self.cluster_size.device), self.step)

    def spread(self, counts: torch.Tensor, sums: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Statistics with the neighbours' share; one training step passes."""
        weights = self.influence().to(counts.dtype)
        self.step += 1
        if self.options.update == "gradient":
            return counts, sums
        return weights.T @ counts, weights.T @ sums

    def topology_loss(self, codes: torch.Tensor) -> torch.Tensor | None:
        """Mean over vectors of the neighbours' squared distances to the vector's (fixed) codeword, by influence."""
        if self.options.update != "gradient" or not len(codes):
            return None
        counts = torch.bincount(codes, minlength=self.size)
        # Expanded into products, so that memory is the grid's square and not that times the width; the common part of
        # all codewords cancels, and is taken away first.
        with torch.autocast(codes.device.type, enabled=False):
            moving = self.codewords.float()
            moving = moving - moving.detach().mean(0)
            fixed = moving.detach()
            weights = self.influence() * (counts / len(codes))[:, None]
            apart = (weights.sum(0) * moving.square().sum(1)).sum() + (weights.sum(1) * fixed.square().sum(1)).sum()
            return self.neighbourhood.weight * (apart - 2.0 * (moving * (weights.T @ fixed)).sum())


__all__ = [
    "ADJACENT",
    "Neighbourhood",
    "SomCodebook",
    "grid_coordinates",
    "grid_distances",
    "grid_shape_of",
]
