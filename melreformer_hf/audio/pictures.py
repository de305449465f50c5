"""Mels as pictures: low bands at the bottom, time to the right, one colour scale for everything shown together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

# Anchors of a perceptually increasing dark-to-bright scale (violet, red, orange, yellow), interpolated linearly.
_ANCHORS = np.array(
    [
        [0, 0, 4],
        [40, 11, 84],
        [101, 21, 110],
        [159, 42, 99],
        [212, 72, 66],
        [245, 125, 21],
        [250, 193, 39],
        [252, 255, 164],
    ],
    dtype=np.float64,
)


def colorize(values: torch.Tensor, low: float, high: float) -> np.ndarray:
    """(height, width) values to (height, width, 3) uint8; `low` and below is black, `high` and above bright."""
    array = values.detach().cpu().float().numpy()
    share = np.clip((array - low) / max(high - low, 1e-9), 0, 1) * (len(_ANCHORS) - 1)
    lower = np.minimum(share.astype(int), len(_ANCHORS) - 2)
    rest = (share - lower)[..., None]
    return (_ANCHORS[lower] * (1 - rest) + _ANCHORS[lower + 1] * rest).round().astype(np.uint8)


def mel_picture(
    mel: torch.Tensor, low: float | None = None, high: float | None = None, width: int | None = None
) -> np.ndarray:
    """Picture of one log-mel.

    Args:
        mel: (mel, frame).
        low: value drawn black; default the smallest.
        high: value drawn brightest; default the largest.
        width: columns of the picture; default one per frame.

    Returns:
        (mel, width, 3) uint8, lowest band in the bottom row.

    Raises:
        ValueError: `mel` is not two-dimensional.
    """
    if mel.ndim != 2:
        raise ValueError(f"mel must have shape (mel, frame), got {tuple(mel.shape)}.")
    if width is not None and width != mel.shape[1]:
        mode = "area" if width < mel.shape[1] else "nearest"
        mel = torch.nn.functional.interpolate(mel[None].float(), size=width, mode=mode)[0]
    low = mel.min().item() if low is None else low
    high = mel.max().item() if high is None else high
    return colorize(mel.flip(0), low, high)


def stack_mels(mels: Sequence[torch.Tensor], width: int = 1024, gap: int = 4) -> np.ndarray:
    """Mels above one another with a common colour scale and width, (height, width, 3) uint8."""
    low = min(mel.min().item() for mel in mels)
    high = max(mel.max().item() for mel in mels)
    rows: list[np.ndarray] = []
    for mel in mels:
        if rows:
            rows.append(np.full((gap, width, 3), 255, dtype=np.uint8))
        rows.append(mel_picture(mel, low, high, width))
    return np.concatenate(rows)


__all__ = ["colorize", "mel_picture", "stack_mels"]
