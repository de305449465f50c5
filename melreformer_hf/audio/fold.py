"""Folding: `fold_size` neighboring mel columns become one token (MelReformer's trick for short sequences)."""

from __future__ import annotations

import torch


def fold(mel: torch.Tensor, fold_size: int, pad_value: float = 0.0) -> torch.Tensor:
    """Stack windows of columns, mel-major: entry `m * fold_size + t` of a token is bin m at column t of its window.

    Args:
        mel: (batch, mel, frame), any number of frames; the last window is padded with `pad_value`.
        fold_size: columns per window, at least 1.
        pad_value: filling of an incomplete last window.

    Returns:
        (batch, ceil(frame / fold_size), mel * fold_size).

    Raises:
        ValueError: `fold_size` below 1 or `mel` not three-dimensional.
    """
    if fold_size < 1:
        raise ValueError(f"fold_size must be at least 1, got {fold_size}.")
    if mel.ndim != 3:
        raise ValueError(f"mel must have shape (batch, mel, frame), got {tuple(mel.shape)}.")
    batch, bins, length = mel.shape
    missing = -length % fold_size
    if missing:
        mel = torch.nn.functional.pad(mel, (0, missing), value=pad_value)
    windows = mel.reshape(batch, bins, -1, fold_size).transpose(1, 2)
    return windows.reshape(batch, -1, bins * fold_size)


def unfold(tokens: torch.Tensor, fold_size: int, num_frames: int | None = None) -> torch.Tensor:
    """The inverse of `fold`, trimmed to `num_frames` columns when given.

    Args:
        tokens: (batch, step, mel * fold_size).
        fold_size: columns per window.
        num_frames: frames to keep, at most step * fold_size.

    Returns:
        (batch, mel, frame).

    Raises:
        ValueError: the token width is no multiple of `fold_size`, or `num_frames` is out of range.
    """
    if fold_size < 1 or tokens.ndim != 3 or tokens.shape[-1] % fold_size:
        raise ValueError(
            f"tokens must have shape (batch, step, mel * fold_size) with fold_size={fold_size} at least 1, "
            f"got {tuple(tokens.shape)}."
        )
    batch, steps, width = tokens.shape
    mel = tokens.reshape(batch, steps, width // fold_size, fold_size).transpose(1, 2)
    mel = mel.reshape(batch, width // fold_size, steps * fold_size)
    if num_frames is None:
        return mel
    if not 0 <= num_frames <= mel.shape[-1]:
        raise ValueError(f"num_frames must be in 0..{mel.shape[-1]}, got {num_frames}.")
    return mel[..., :num_frames]


__all__ = ["fold", "unfold"]
