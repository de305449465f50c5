"""Noise on a time axis that anyone can read anywhere: a function of a seed and a place, not of what was drawn before.

So chunks of any length, rows of any batch and pieces that begin in the middle have the noise of the whole.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

_BLOCK = 64
# Odd constants spread neighboring blocks over the seeds.
_SPREAD, _STRIDE = 0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93


def row_seeds(generator: torch.Generator | Sequence[torch.Generator | None] | None, rows: int) -> torch.Tensor:
    """(row,) int64 seeds on the CPU; with a generator per row a row's seed does not depend on the rows beside it.

    Raises:
        ValueError: a sequence of another length.
    """
    if isinstance(generator, Sequence):
        if len(generator) != rows:
            raise ValueError(f"generator must be one, or one per row ({rows}), got {len(generator)}.")
        return torch.cat([row_seeds(one, 1) for one in generator])
    device = "cpu" if generator is None else generator.device
    return torch.randint(2**62, (rows,), generator=generator, device=device).cpu()


def seeded_noise(seeds: torch.Tensor, first: int, count: int, channels: int, stream: int = 0) -> torch.Tensor:
    """Normal noise at `count` places from `first` on.

    Args:
        seeds: (row,) int64.
        first: place of the first; before place 0 there is no noise.
        count: places.
        channels: numbers per place.
        stream: of several independent ones with the same seed.

    Returns:
        (row, channels, count) float32 on the CPU.
    """
    begin, end = max(first, 0), first + count
    noise = torch.zeros(len(seeds), channels, count)
    if end <= begin:
        return noise
    blocks = range(begin // _BLOCK, -(-end // _BLOCK))
    for row, seed in enumerate(seeds.tolist()):
        drawn = [_block(seed, stream, block, channels) for block in blocks]
        offset = begin - blocks[0] * _BLOCK
        noise[row, :, begin - first :] = torch.cat(drawn, dim=-1)[:, offset : offset + end - begin]
    return noise


def _block(seed: int, stream: int, block: int, channels: int) -> torch.Tensor:
    mixed = (seed * _SPREAD + (block * 2 + stream + 1) * _STRIDE) % 2**63
    return torch.randn(channels, _BLOCK, generator=torch.Generator().manual_seed(mixed))


__all__ = ["row_seeds", "seeded_noise"]
