"""The common time axis of an idea and its music: frames, columns, and interpolation between them.

Column c of C covers the frames [c T / C, (c + 1) T / C) of a piece of T frames; in units of columns its centre is c.
"""

from __future__ import annotations

import torch


def column_of(frames: torch.Tensor, num_frames: torch.Tensor, num_columns: int) -> torch.Tensor:
    """Time of frames in columns.

    Args:
        frames: (batch, n) places on the frame axis; the centre of frame t lies at t + 0.5.
        num_frames: (batch,) length T of each piece.
        num_columns: C.

    Returns:
        (batch, n) float32.
    """
    # Double precision: at a million frames float32 would blur neighbouring ones.
    return (frames.double() * num_columns / num_frames.double()[:, None] - 0.5).float()


def interpolate_columns(values: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """Linear interpolation between columns, constant beyond the first and last centres.

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
    frames = start[:, None] + torch.arange(length, device=idea.device) + 0.5
    place = column_of(frames, num_frames, idea.shape[-1])
    return interpolate_columns(idea.transpose(1, 2), place).transpose(1, 2)


__all__ = ["column_of", "interpolate_columns", "interpolate_idea"]
