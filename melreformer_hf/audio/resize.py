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
    """Means over [i T / N, (i + 1) T / N) for every output column i of N."""
    length = mel.shape[-1]
    # Edges are kept as whole multiples of 1 / N, so that neither edges nor weights are rounded: column i begins at
    # i * T / N, and frame j at j * N / N.
    column = torch.arange(num_frames, device=mel.device)[:, None]
    first = column * length // num_frames
    frame = first + torch.arange(-(-length // num_frames) + 1, device=mel.device)  # (column, frames that it may touch)
    begin = torch.maximum(frame * num_frames, column * length)
    end = torch.minimum((frame + 1) * num_frames, (column + 1) * length)
    weight = (end - begin).clamp(min=0).to(torch.promote_types(mel.dtype, torch.float32)) / length
    # A column gathers its own frames: sums stay short (float32 is enough) and do not depend on the order of threads.
    near = mel[..., frame.clamp(max=length - 1)].to(weight.dtype)
    return (near * weight).sum(-1).to(mel.dtype)


__all__ = ["resize_mel"]
