"""What levels of codes cost, and how many of them fit into a bandwidth."""

from __future__ import annotations

import math
from collections.abc import Sequence

# So that a bandwidth that was computed here fits despite rounding.
_SLACK = 1 + 1e-6


def kbps_of(codebook_sizes: Sequence[int], frame_rate: float) -> float:
    """Kilobits per second of one code of each codebook per frame."""
    return sum(math.log2(size) for size in codebook_sizes) * frame_rate / 1000


def levels_within(codebook_sizes: Sequence[int], frame_rate: float, bandwidth: float) -> int:
    """The most levels, from the first on, that fit into a bandwidth.

    Args:
        codebook_sizes: codewords of each level.
        frame_rate: frames per second.
        bandwidth: kilobits per second.

    Raises:
        ValueError: not even one level fits.
    """
    counts = range(1, len(codebook_sizes) + 1)
    fitting = [count for count in counts if kbps_of(codebook_sizes[:count], frame_rate) <= bandwidth * _SLACK]
    if not fitting:
        least = kbps_of(codebook_sizes[:1], frame_rate)
        raise ValueError(f"bandwidth must be at least {least:g} kbps, one level, got {bandwidth}.")
    return fitting[-1]


__all__ = ["kbps_of", "levels_within"]
