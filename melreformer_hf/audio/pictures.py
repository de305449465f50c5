"""Mels as pictures: low bands at the bottom, time to the right, one colour scale for everything shown together."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

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


def idea_and_mel(idea: torch.Tensor, mel: torch.Tensor, path: str | os.PathLike, max_width: int = 2048) -> Path:
    """Write a PNG with an idea on the left and the mel it became on the right, on one colour scale.

    Args:
        idea: (mel, column).
        mel: (mel, frame); longer than `max_width` frames it is averaged down.
        path: the file, written complete or not at all.
        max_width: widest picture of the mel in pixels.
    """
    from PIL import Image

    low, high = min(idea.min().item(), mel.min().item()), max(idea.max().item(), mel.max().item())
    left = mel_picture(idea, low, high)
    right = mel_picture(mel, low, high, min(mel.shape[1], max_width))
    gap = np.full((left.shape[0], 8, 3), 255, dtype=np.uint8)
    picture = Image.fromarray(np.concatenate([left, gap, right], axis=1))
    picture = picture.resize((picture.width, picture.height * 2), Image.Resampling.NEAREST)
    path = Path(path)
    temporary = path.with_name(f".{path.name}.partial")
    picture.save(temporary, format="PNG")
    os.replace(temporary, path)
    return path


__all__ = ["colorize", "idea_and_mel", "mel_picture", "stack_mels"]
