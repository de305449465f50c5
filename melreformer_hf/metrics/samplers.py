"""What a sampler is worth: several draws for one target."""

from __future__ import annotations

import torch


def crps(draws: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Continuous ranked probability score, averaged over the numbers of the target.

    mean |x_i - y| - 1 / (2 m (m - 1)) sum_{i != j} |x_i - x_j|, the unbiased estimate from m draws. One draw gives
    mean |x - y|: a deterministic model's score is its L1 distance, so that samplers and regressors compare.
    Source: Gneiting and Raftery, Strictly proper scoring rules (2007), section 4.2.

    Args:
        draws: (draw, ...), independent draws for the same condition.
        target: (...), what really came.

    Returns:
        scalar, in the unit of the target; lower is better.

    Raises:
        ValueError: the shapes do not fit, or there is no draw.
    """
    if draws.ndim != target.ndim + 1 or draws.shape[1:] != target.shape or not len(draws):
        raise ValueError(
            "draws must be (draw, ...) with the target's shape behind the first axis and at least one draw, got "
            f"{tuple(draws.shape)} for a target {tuple(target.shape)}."
        )
    draws, target = draws.float(), target.float()
    count = len(draws)
    error = (draws - target).abs().mean()
    if count == 1:
        return error
    # Of sorted draws, the k-th (from 1) is subtracted k - 1 times from smaller ones and m - k times the other way:
    # the sum over pairs i < j of |x_i - x_j| is sum_k (2 k - m - 1) x_k, without m^2 differences in memory.
    ordered = draws.sort(dim=0).values
    weights = 2 * torch.arange(1, count + 1, device=draws.device, dtype=draws.dtype) - count - 1
    pairs = torch.tensordot(weights, ordered, dims=1)
    return error - pairs.mean() / (count * (count - 1))


__all__ = ["crps"]
