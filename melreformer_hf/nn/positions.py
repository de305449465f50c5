"""Positions: rotary codes for relative order, sinusoids for the original models."""

from __future__ import annotations

import math

import torch

# Fraction bits of an angle in turns. An integer times an integer is exact, and what overflows 64 bits is whole turns.
_TURN_BITS = 40


def rotary_angles(positions: torch.Tensor, head_dim: int, base: float = 10000.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of rotary position codes (Su et al., RoFormer, arXiv 2104.09864, section 3.2.2).

    Angles are counted in integer fractions of a turn: float32 would lose the fast pairs after some thousand steps, and
    float64 does not exist on every device.

    Args:
        positions: (..., step) whole numbers.
        head_dim: even size of an attention head.
        base: slowest wavelength is 2 pi times this.

    Returns:
        two tensors (..., step, head_dim / 2) in float32.

    Raises:
        ValueError: `head_dim` is odd, or the positions are not integers.
    """
    if head_dim % 2:
        raise ValueError(f"head_dim must be even, got {head_dim}.")
    if positions.is_floating_point():
        raise ValueError(f"positions must be integers, got {positions.dtype}.")
    one = 2**_TURN_BITS
    # theta_i = base ** (-2 i / head_dim) radians per step, here in turns.
    rates = [round(base ** (-index / head_dim) / (2 * math.pi) * one) for index in range(0, head_dim, 2)]
    turns = positions.long()[..., None] * torch.tensor(rates, device=positions.device)
    # The last bits alone, moved to -1/2 .. 1/2 turn, where float32 is finest around zero.
    part = ((turns + one // 2) & (one - 1)) - one // 2
    angles = part.float() * (2 * math.pi / one)
    return angles.cos(), angles.sin()


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
