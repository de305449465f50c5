"""Vector quantisation by a self-organising map."""

from __future__ import annotations

from typing import Literal

import torch

from melreformer_hf.nn.quantization.residual import VectorQuantizer
from melreformer_hf.nn.quantization.som_codebook import Neighbourhood, grid_distances
from melreformer_hf.nn.quantization.topology import TopologyOutput, topology


class SomQuantizer(VectorQuantizer):
    """One codebook on a grid, whose codewords learn together with their neighbours (Kohonen-VAE, arXiv 2302.07950).

    The neighbourhood acts on learning alone; codes and outputs are those of plain vector quantisation. With `radius=0`
    the whole is `VectorQuantizer(update="ema")`, to the bit. With `update="gradient"` neighbours are pulled towards the
    chosen codeword by a loss.

    Args:
        dim: width of the input.
        codebook_size: number of codewords.
        codebook_dim: width of factorised codewords, see `ResidualVectorQuantizer`.
        update: "ema" or "gradient".
        neighbourhood: grid and reach; the default is the paper's hard neighbourhood of eight cells.
        commitment_weight: as in `ResidualVectorQuantizer`.
        **options: further arguments of `ResidualVectorQuantizer`. Codewords start at random and are not restarted
            unless asked for: the neighbours bring unused ones along.

    Example:

        >>> import torch
        >>> from melreformer_hf.nn.quantization import SomQuantizer
        >>> quantizer = SomQuantizer(dim=2, codebook_size=16, decay=0.8).train()
        >>> for _ in range(50):
        ...     output = quantizer(torch.rand(1, 2, 64))
        >>> quantizer.grid_shape
        (4, 4)
        >>> measures = quantizer.eval().topology(torch.rand(1, 2, 256))
        >>> bool(measures.neighbourhood_correlation > 0)
        True
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        codebook_dim: int | None = None,
        update: Literal["ema", "gradient"] = "ema",
        *,
        neighbourhood: Neighbourhood | None = None,
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
            neighbourhood=neighbourhood or Neighbourhood(),
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


__all__ = ["SomQuantizer"]
