"""What idea models of every kind draw: ideas, and how long the music is."""

from __future__ import annotations

from typing import NamedTuple

import torch


class IdeaSample(NamedTuple):
    """Ideas that were drawn.

    Args:
        ideas: (batch, mel, column) float32 log-mels, at least the value of silence.
        num_frames: (batch,) int64 durations in frames.
    """

    ideas: torch.Tensor
    num_frames: torch.Tensor


def check_lengths(num_frames: int | torch.Tensor, batch_size: int, device: torch.device | str) -> torch.Tensor:
    """One length or (batch,) lengths in frames as (batch,) int64.

    Raises:
        ValueError: they are not whole, not positive, or of another number.
    """
    lengths = torch.as_tensor(num_frames, device=device)
    whole = not lengths.is_floating_point() and lengths.dtype != torch.bool
    if not whole or lengths.ndim > 1 or lengths.numel() not in (1, batch_size) or lengths.min() < 1:
        raise ValueError(f"num_frames must be a positive whole number, or {batch_size} of them, got {num_frames!r}.")
    return lengths.long().expand(batch_size).clone()


def log2_of_lengths(num_frames: torch.Tensor) -> torch.Tensor:
    """Lengths as models are told them: float32 log2 of (batch,) frames. Never turned back: it would lose a frame."""
    return num_frames.cpu().double().log2().float().to(num_frames.device)


def row_generators_of(generator: torch.Generator | list[torch.Generator] | None, batch_size: int) -> list:
    """A generator per row: a single one is used row after row.

    Raises:
        ValueError: a list of another length.
    """
    if generator is None or isinstance(generator, torch.Generator):
        return [generator] * batch_size
    if len(generator) != batch_size:
        raise ValueError(f"generator must be one, or one per row: got {len(generator)} for batch_size={batch_size}.")
    return list(generator)


__all__ = ["IdeaSample", "check_lengths", "log2_of_lengths", "row_generators_of"]
