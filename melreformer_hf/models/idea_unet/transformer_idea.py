"""Transformer over the columns of an idea: a few columns are a token, and every token sees all others.

Blocks are those of Peebles and Xie, DiT (arXiv 2212.09748), with one table of shifts, scales and gates per block added to a
modulation that all share (Chen et al., PixArt-alpha, arXiv 2310.00426), and rotary positions: a beat is a distance in time.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from melreformer_hf.nn.attention import split_heads
from melreformer_hf.nn.positions import rotary_angles, rotate

_ROTARY_BASE = 1000.0
_TIME_FREQUENCIES = 16


class TimestepFeatures(nn.Module):
    """Fourier features of the time step, then a perceptron."""

    def __init__(self, embedding_size: int) -> None:
        super().__init__()
        self.up = nn.Linear(1 + 2 * _TIME_FREQUENCIES, embedding_size)
        self.activation = nn.SiLU()
        self.down = nn.Linear(embedding_size, embedding_size)

    def forward(self, timestep: torch.Tensor) -> torch.Tensor:
        """(batch,) time steps of a thousand -> (batch, embedding)."""
        place = timestep.float()[:, None] / 1000
        octaves = 2.0 ** torch.linspace(-1, 7, _TIME_FREQUENCIES, device=place.device)
        angles = place * octaves * math.pi
        features = torch.cat([place, angles.sin(), angles.cos()], dim=-1).to(self.up.weight.dtype)
        return self.down(self.activation(self.up(features)))


class ModulatedBlock(nn.Module):
    """Attention over all tokens and a perceptron, each shifted, scaled and gated by the condition.

    Args:
        hidden_size: width.
        num_heads: heads; `hidden_size / num_heads` must be even.
    """

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = nn.LayerNorm(hidden_size, elementwise_affine=False)
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.out = nn.Linear(hidden_size, hidden_size)
        self.norm = nn.LayerNorm(hidden_size, elementwise_affine=False)
        self.up = nn.Linear(hidden_size, 4 * hidden_size)
        self.activation = nn.GELU(approximate="tanh")
        self.down = nn.Linear(4 * hidden_size, hidden_size)
        # (shift, scale, gate of the attention, then of the perceptron; width): what this block adds to the shared ones.
        self.modulation = nn.Parameter(torch.zeros(6, hidden_size))
        for layer in (self.out, self.down):
            nn.init.zeros_(layer.weight)  # a block begins as the identity

    def forward(
        self, hidden: torch.Tensor, condition: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """(batch, token, hidden), shared modulation (batch, 6, hidden), rotary angles -> (batch, token, hidden)."""
        told = (condition + self.modulation)[:, :, None]  # (batch, 6, 1, hidden)
        shift, scale, gate, late_shift, late_scale, late_gate = told.unbind(1)
        query, key, value = (
            split_heads(part, self.num_heads)
            for part in self.qkv(self.attention_norm(hidden) * (1 + scale) + shift).chunk(3, dim=-1)
        )
        query, key = rotate(query, *angles), rotate(key, *angles)
        # Plain products: for so few tokens the fused kernel costs more, above all its gradient on CPUs.
        weights = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1).to(value.dtype)
        hidden = hidden + (1 + gate) * self.out((weights @ value).transpose(1, 2).flatten(2))
        changed = self.norm(hidden) * (1 + late_scale) + late_shift
        return hidden + (1 + late_gate) * self.down(self.activation(self.up(changed)))


class ColumnTransformer(nn.Module):
    """Tokens of neighboring columns, all bands of each, told the time step and one more condition.

    Args:
        num_rows: bands.
        num_columns: columns.
        columns_per_token: divides them.
        hidden_size: width.
        num_layers: blocks.
        num_heads: heads; the width of each must be even.
    """

    def __init__(
        self,
        num_rows: int,
        num_columns: int,
        columns_per_token: int,
        hidden_size: int,
        num_layers: int,
        num_heads: int,
    ) -> None:
        super().__init__()
        self.columns_per_token, self.head_size = columns_per_token, hidden_size // num_heads
        size = num_rows * columns_per_token
        self.read = nn.Linear(size, hidden_size)
        self.place = nn.Parameter(0.02 * torch.randn(num_columns // columns_per_token, hidden_size))
        self.time = TimestepFeatures(hidden_size)
        self.activation = nn.SiLU()
        self.condition = nn.Linear(hidden_size, 6 * hidden_size)
        self.blocks = nn.ModuleList(ModulatedBlock(hidden_size, num_heads) for _ in range(num_layers))
        self.norm = nn.LayerNorm(hidden_size)
        self.write = nn.Linear(hidden_size, size)
        self.gradient_checkpointing = False
        for layer in (self.condition, self.write):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
        """Args:
            sample: (batch, row, column).
            timestep: scalar or (batch,).
            told: (batch, hidden_size) what is known besides.

        Returns:
            (batch, row, column).
        """
        rows, wide = sample.shape[1], self.columns_per_token
        # (batch, row, token, wide) -> (batch, token, row * wide)
        tokens = sample.unflatten(2, (-1, wide)).transpose(1, 2).flatten(2)
        hidden = self.read(tokens) + self.place
        timestep = torch.as_tensor(timestep, device=sample.device).expand(len(sample))
        condition = self.condition(self.activation(self.time(timestep) + told)).unflatten(-1, (6, -1))
        angles = rotary_angles(torch.arange(hidden.shape[1], device=sample.device), self.head_size, _ROTARY_BASE)
        for block in self.blocks:
            if self.gradient_checkpointing and self.training:
                hidden = torch.utils.checkpoint.checkpoint(block, hidden, condition, angles, use_reentrant=False)
            else:
                hidden = block(hidden, condition, angles)
        written = self.write(self.norm(hidden))
        return written.unflatten(-1, (rows, wide)).transpose(1, 2).flatten(2)


__all__ = ["ColumnTransformer"]
