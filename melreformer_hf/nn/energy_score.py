"""Energy score over overlapping patches of time and frequency: what a sampler is trained with.

mean_i d(x_i, y) - 1 / (2 m (m - 1)) sum_{i != j} d(x_i, x_j) of m draws x and the truth y. It is lowest for draws from the
true distribution, because the distance d between draws pays them to differ as much as the truth does. In many dimensions
it sees how bins depend on one another only weakly; hence d is a mean over small patches, of values and of differences.
Source: Gneiting and Raftery, Strictly proper scoring rules (2007), section 4.3.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import avg_pool2d

Patches = Sequence[tuple[int, int]]
# Added to mean squares before the root, whose slope is infinite at zero: draws are equal at the start of a training.
_SMALLEST_SQUARE = 1e-8


def _fitting(size: int, available: int) -> tuple[int, int]:
    """Half a patch along an axis, and how many halves it has: patches longer than the axis shrink to it."""
    size = min(size, available)
    return (1, size) if size < 2 else (size // 2, 2)


def patch_distance(difference: torch.Tensor, inside: torch.Tensor, patches: Patches) -> torch.Tensor:
    """Root mean squares over half-overlapping patches, averaged.

    Args:
        difference: (batch, mel, frame).
        inside: (batch, 1, frame), one where frames count, zero elsewhere.
        patches: (bands, frames) of each size; odd ones are one less.

    Returns:
        (batch,), the mean over sizes of the mean over the patches that hold a frame inside; zero without such.
    """
    squares = (difference * inside).square()[:, None]  # (batch, 1, mel, frame)
    counted = inside[:, None]
    means = []
    for bands, frames in patches:
        (half_bands, many_bands), (half_frames, many_frames) = (
            _fitting(size, available) for size, available in zip((bands, frames), squares.shape[2:], strict=True)
        )
        # Halves first, so that no number is read more often than once per size.
        halves = avg_pool2d(squares, (half_bands, half_frames))
        means_of_patches = avg_pool2d(halves, (many_bands, many_frames), stride=1)[:, 0]
        holds = avg_pool2d(avg_pool2d(counted, (1, half_frames)), (1, many_frames), stride=1)[:, 0] > 0
        roots = (means_of_patches + _SMALLEST_SQUARE).sqrt() * holds  # (batch, patch row, patch column)
        count = (holds.sum((1, 2)) * roots.shape[1]).clamp(min=1)
        means.append(roots.sum((1, 2)) / count)
    return torch.stack(means).mean(0)


def mel_distance(difference: torch.Tensor, inside: torch.Tensor, patches: Patches) -> torch.Tensor:
    """`patch_distance` of values, and of their changes in time and in frequency, averaged: (batch,)."""
    both = inside[..., 1:] * inside[..., :-1]
    parts = [patch_distance(difference, inside, patches)]
    if difference.shape[-1] > 1:
        parts.append(patch_distance(difference.diff(dim=-1), both, patches))
    if difference.shape[-2] > 1:
        parts.append(patch_distance(difference.diff(dim=-2), inside, patches))
    return torch.stack(parts).mean(0)


def energy_score(draws: torch.Tensor, target: torch.Tensor, inside: torch.Tensor, patches: Patches) -> torch.Tensor:
    """Energy score of log-mels.

    Args:
        draws: (batch, draw, mel, frame), independent for the same condition; one draw is judged by its distance alone.
        target: (batch, mel, frame), what really came.
        inside: (batch, 1, frame), one where frames count.
        patches: (bands, frames) of each size.

    Returns:
        (batch,), in the unit of the target; lower is better.
    """
    count = draws.shape[1]
    first, second = torch.triu_indices(count, count, 1, device=draws.device)
    differences = torch.cat([draws - target[:, None], draws[:, first] - draws[:, second]], dim=1)
    # (batch, draw + pair, mel, frame) -> rows of their own
    rows = mel_distance(differences.flatten(0, 1), inside.repeat_interleave(differences.shape[1], 0), patches)
    errors, pairs = rows.unflatten(0, (len(target), -1)).split([count, len(first)], dim=1)
    score = errors.mean(1)
    return score - 0.5 * pairs.mean(1) if count > 1 else score


__all__ = ["energy_score", "mel_distance", "patch_distance"]
