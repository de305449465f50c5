"""Attention blocks shared by the transformers of the package; scaled dot products by torch's fused kernel."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from melreformer_hf.nn.positions import rotary_angles, rotate


def split_heads(values: torch.Tensor, num_heads: int) -> torch.Tensor:
    """(batch, step, width) -> (batch, head, step, width / head)."""
    return values.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def merge_heads(values: torch.Tensor) -> torch.Tensor:
    """(batch, head, step, width) -> (batch, step, head * width)."""
    return values.transpose(1, 2).flatten(2)


def band_mask(queries: torch.Tensor, keys: torch.Tensor, before: int, after: int) -> torch.Tensor:
    """Boolean mask that lets a query see the keys at most `before` earlier and `after` later.

    Args:
        queries: (query,) integer positions.
        keys: (key,) integer positions.
        before: farthest visible past.
        after: farthest visible future; 0 is causal.

    Returns:
        (query, key), true where visible.
    """
    distance = keys[None, :] - queries[:, None]
    return (distance >= -before) & (distance <= after)


class FeedForward(nn.Module):
    """Two linear layers with a GELU between them, after a normalisation."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size)
        self.up = nn.Linear(hidden_size, intermediate_size)
        self.activation = nn.GELU()
        self.down = nn.Linear(intermediate_size, hidden_size)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(..., hidden) -> (..., hidden)."""
        return self.down(self.activation(self.up(self.norm(hidden))))


class WindowedSelfAttention(nn.Module):
    """Self-attention within a window around each step, with rotary relative positions.

    Args:
        hidden_size: width.
        num_heads: heads; `hidden_size / num_heads` must be even.
        before: steps of the past that a step sees.
        after: steps of the future that a step sees; 0 is causal.
    """

    def __init__(self, hidden_size: int, num_heads: int, before: int, after: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = hidden_size // num_heads
        self.before, self.after = before, after
        self.norm = nn.LayerNorm(hidden_size)
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.out = nn.Linear(hidden_size, hidden_size)

    def forward(
        self, hidden: torch.Tensor, start: int = 0, cache: tuple[torch.Tensor, torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        """Attend.

        Args:
            hidden: (batch, step, hidden).
            start: position of the first step.
            cache: rotated keys and values of the steps just before `start`, (batch, head, past, head_dim) each.

        Returns:
            (batch, step, hidden) and the keys and values of the last `before` steps.
        """
        query, key, value = (split_heads(x, self.num_heads) for x in self.qkv(self.norm(hidden)).chunk(3, dim=-1))
        positions = torch.arange(start, start + hidden.shape[1], device=hidden.device)
        cosine, sine = rotary_angles(positions, self.head_dim)
        query, key = rotate(query, cosine, sine), rotate(key, cosine, sine)
        past = 0
        if cache is not None:
            past = cache[0].shape[2]
            key, value = torch.cat([cache[0], key], dim=2), torch.cat([cache[1], value], dim=2)
        keys = torch.arange(start - past, start + hidden.shape[1], device=hidden.device)
        mask = band_mask(positions, keys, self.before, self.after)
        attended = scaled_dot_product_attention(query, key, value, attn_mask=mask)
        kept = max(0, key.shape[2] - self.before)
        return self.out(merge_heads(attended)), (key[:, :, kept:], value[:, :, kept:])


class NeighbourAttention(nn.Module):
    """Cross-attention of each step to the few memory columns nearest to it in time.

    Keys carry the signed distance between column and step, measured in columns, so that the diagonal need not be found.

    Args:
        hidden_size: width of queries and memory.
        num_heads: heads.
        reach: columns to each side of the nearest one.
    """

    def __init__(self, hidden_size: int, num_heads: int, reach: int) -> None:
        super().__init__()
        self.num_heads, self.reach = num_heads, reach
        self.norm = nn.LayerNorm(hidden_size)
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key_value = nn.Linear(hidden_size, 2 * hidden_size)
        self.distance_key = nn.Linear(3, hidden_size)
        self.out = nn.Linear(hidden_size, hidden_size)

    def memory(self, states: torch.Tensor) -> torch.Tensor:
        """Keys and values of all columns, computed once: (batch, column, hidden) -> (batch, column, 2 * hidden)."""
        return self.key_value(states)

    def forward(self, hidden: torch.Tensor, memory: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        """Attend.

        Args:
            hidden: (batch, step, hidden).
            memory: (batch, column, 2 * hidden), see `memory`.
            place: (batch, step) time of each step in columns, column c having its centre at c.

        Returns:
            (batch, step, hidden).
        """
        batch, steps, width = hidden.shape
        columns = memory.shape[1]
        offsets = torch.arange(-self.reach, self.reach + 1, device=hidden.device)
        index = place.round().long()[..., None] + offsets
        visible = (index >= 0) & (index < columns)
        index = index.clamp(0, columns - 1)
        near = memory.gather(1, index.reshape(batch, -1, 1).expand(-1, -1, 2 * width))
        key, value = near.reshape(batch * steps, len(offsets), 2 * width).chunk(2, dim=-1)
        distance = (index - place[..., None]).reshape(batch * steps, len(offsets), 1)
        described = torch.cat([distance, distance.abs(), torch.exp(-distance.square())], dim=-1).to(hidden.dtype)
        key = key + self.distance_key(described)
        query = self.query(self.norm(hidden)).reshape(batch * steps, 1, width)
        attended = scaled_dot_product_attention(
            split_heads(query, self.num_heads),
            split_heads(key, self.num_heads),
            split_heads(value, self.num_heads),
            attn_mask=visible.reshape(batch * steps, 1, 1, -1),
        )
        return self.out(merge_heads(attended).reshape(batch, steps, width))


__all__ = ["FeedForward", "NeighbourAttention", "WindowedSelfAttention", "band_mask", "merge_heads", "split_heads"]
