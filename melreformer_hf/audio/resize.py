"""Resizing a mel along time: the operation that turns music into an idea, and its naive inverse."""

from __future__ import annotations

import torch
from torch.nn.functional import interpolate


def resize_mel(mel: torch.Tensor, num_frames: int, mode: str = "area") -> torch.Tensor:
    """Resize the time axis of a log-mel.

    Args:
        mel: (..., mel, frame) floating point.
        num_frames: frames of the result, at least 1.
        mode: `"area"` averages exact (fractional) areas when it shrinks and interpolates linearly when it grows.
            `"point"` is the original MelReformer's linear interpolation without anti-aliasing, which reads two
            source columns per output column whatever the ratio.

    Returns:
        (..., mel, num_frames).

    Raises:
        ValueError: `num_frames` below 1, an empty time axis, or an unknown mode.
    """
    if num_frames < 1:
        raise ValueError(f"num_frames must be at least 1, got {num_frames}.")
    if mode not in ("area", "point"):
        raise ValueError(f'mode must be "area" or "point", got {mode!r}.')
    if mel.ndim < 2 or mel.shape[-1] == 0:
        raise ValueError(f"mel must have shape (..., mel, frame) with at least one frame, got {tuple(mel.shape)}.")
    length = mel.shape[-1]
    if length == num_frames:
        return mel
    if mode == "area" and num_frames < length:
        return _average_areas(mel, num_frames)
    flat = mel.reshape(-1, *mel.shape[-2:])
    return interpolate(flat, size=num_frames, mode="linear", align_corners=False).reshape(*mel.shape[:-1], num_frames)


def _average_areas(mel: torch.Tensor, num_frames: int) -> torch.Tensor:
    # Means over [i T/N, (i+1) T/N) as differences of the running integral. Double precision: the integral of a long
    # piece is a thousand times larger than a column.
    length = mel.shape[-1]
    integral = torch.nn.functional.pad(mel.double().cumsum(-1), (1, 0))
    edges = torch.arange(num_frames + 1, device=mel.device, dtype=torch.float64) * (length / num_frames)
    lower = edges.floor().long().clamp(max=length - 1)
    inside = (edges - lower) * mel.double()[..., lower]
    at_edges = integral[..., lower] + inside
    return (at_edges.diff(dim=-1) * (num_frames / length)).to(mel.dtype)


__all__ = ["resize_mel"]
