"""The common time axis of an idea and its music: frames, columns, and interpolation between them.

Column c of C covers the frames [c T / C, (c + 1) T / C) of a piece of T frames; in units of columns its center is c.
"""

from __future__ import annotations

import torch


def column_of(half_frames: torch.Tensor, num_frames: torch.Tensor, num_columns: int) -> torch.Tensor:
    """Time of places on the frame axis in columns.

    Args:
        half_frames: (batch, n) whole numbers of half frames; the center of frame t lies at 2 t + 1.
        num_frames: (batch,) length T of each piece.
        num_columns: C.

    Returns:
        (batch, n) float32.
    """
    # place = (h / 2) C / T - 1 / 2 = (h C - T) / (2 T), divided with a remainder: at a million frames a quotient of
    # float32 numbers would blur neighboring frames, and float64 does not exist on every device.
    numerator = half_frames.long() * num_columns - num_frames.long()[:, None]
    denominator = 2 * num_frames.long()[:, None]
    whole = torch.div(numerator, denominator, rounding_mode="floor")
    return whole.float() + (numerator - whole * denominator).float() / denominator.float()


def half_frames(start: torch.Tensor, length: int) -> torch.Tensor:
    """Centers of `length` frames from `start` (batch,) on, in half frames: (batch, length) int64."""
    return 2 * (start[:, None] + torch.arange(length, device=start.device)) + 1


def interpolate_columns(values: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """Linear interpolation between columns, constant beyond the first and last centers.

    Args:
        values: (batch, column, channel).
        place: (batch, n) in columns.

    Returns:
        (batch, n, channel).
    """
    place = place.clamp(0, values.shape[1] - 1)
    lower = place.floor().long().clamp(max=max(values.shape[1] - 2, 0))
    share = (place - lower)[..., None].to(values.dtype)
    upper = (lower + 1).clamp(max=values.shape[1] - 1)
    width = values.shape[2]
    below = values.gather(1, lower[..., None].expand(-1, -1, width))
    above = values.gather(1, upper[..., None].expand(-1, -1, width))
    return below + (above - below) * share


def interpolate_idea(idea: torch.Tensor, start: torch.Tensor, length: int, num_frames: torch.Tensor) -> torch.Tensor:
    """The idea re-interpolated at `length` frames from `start` on: the baseline that the model improves.

    Equals `resize_mel(idea, T)[..., start : start + length]` for T of at least the number of columns.

    Args:
        idea: (batch, mel, column).
        start: (batch,) first frame, may be negative.
        length: frames.
        num_frames: (batch,) length of each piece.

    Returns:
        (batch, mel, length).
    """
    place = column_of(half_frames(start, length), num_frames, idea.shape[-1])
    return interpolate_columns(idea.transpose(1, 2), place).transpose(1, 2)


__all__ = ["column_of", "half_frames", "interpolate_columns", "interpolate_idea"]
