"""Positions: rotary codes for relative order, sinusoids for the original models."""

from __future__ import annotations

import torch


def rotary_angles(positions: torch.Tensor, head_dim: int, base: float = 10000.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of rotary position codes (Su et al., RoFormer, arXiv 2104.09864).

    Args:
        positions: (..., step), any real numbers.
        head_dim: even size of an attention head.
        base: slowest wavelength is 2 pi times this.

    Returns:
        two tensors (..., step, head_dim / 2) in float32.
    """
    if head_dim % 2:
        raise ValueError(f"head_dim must be even, got {head_dim}.")
    frequency = base ** (-torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float64) / head_dim)
    angles = positions.double()[..., None] * frequency
    return angles.cos().float(), angles.sin().float()


def rotate(values: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Turn pairs of channels (i, i + half) by their angles; (..., step, head_dim) with angles (..., step, half)."""
    cosine, sine = cosine.to(values.dtype), sine.to(values.dtype)
    first, second = values.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)


def sinusoidal_table(length: int, width: int) -> torch.Tensor:
    """Fixed sinusoids (Vaswani et al., 2017), sine on even and cosine on odd channels: (length, width) float32."""
    position = torch.arange(length, dtype=torch.float32)[:, None]
    rate = torch.exp(torch.arange(0, width, 2, dtype=torch.float32) * (-torch.log(torch.tensor(10000.0)) / width))
    table = torch.zeros(length, width)
    table[:, 0::2] = torch.sin(position * rate)
    table[:, 1::2] = torch.cos(position * rate)[:, : width // 2]
    return table


__all__ = ["rotary_angles", "rotate", "sinusoidal_table"]
