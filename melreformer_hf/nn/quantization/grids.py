"""Grids of latents as sequences of vectors, for quantizers that work on (batch, dim, frame)."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def fold_grid(latents: torch.Tensor, code_shape: Sequence[int]) -> torch.Tensor:
    """Patches of a grid as vectors, row by row.

    Args:
        latents: (batch, height, width, channel).
        code_shape: rows and columns of codes; divide height and width.

    Returns:
        (batch, patch height * patch width * channel, rows * columns); channels fastest, then patch columns.

    Raises:
        ValueError: the grid is no multiple of the code grid.
    """
    rows, columns = code_shape
    if latents.ndim != 4 or latents.shape[1] % rows or latents.shape[2] % columns:
        raise ValueError(
            f"latents must be (batch, a multiple of {rows}, a multiple of {columns}, channel), got "
            f"{tuple(latents.shape)}."
        )
    patches = latents.unflatten(2, (columns, -1)).unflatten(1, (rows, -1))
    return patches.transpose(2, 3).flatten(3).flatten(1, 2).transpose(1, 2)


def unfold_grid(vectors: torch.Tensor, code_shape: Sequence[int], latent_shape: Sequence[int]) -> torch.Tensor:
    """The inverse of `fold_grid`: (batch, dim, frame) -> (batch, height, width, channel) = `latent_shape`."""
    rows, columns = code_shape
    height, width, channels = latent_shape
    patches = vectors.transpose(1, 2).reshape(-1, rows, columns, height // rows, width // columns, channels)
    return patches.transpose(2, 3).reshape(-1, height, width, channels)


__all__ = ["fold_grid", "unfold_grid"]
