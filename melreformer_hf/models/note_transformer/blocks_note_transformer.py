"""Blocks of the note transformer: attention over order and time, and the heads that write a note."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn.functional import gelu, silu
from transformers.modeling_layers import GradientCheckpointingLayer

from melreformer_hf.models.note_transformer.configuration_note_transformer import NoteTransformerConfig
from melreformer_hf.nn.attention import attend, band_mask, split_heads
from melreformer_hf.nn.positions import rotate


@dataclass
class NoteCache:
    """What the layers remember of the notes before: at most `window - 1` of them, whatever the piece's length.

    Args:
        keys: per layer (batch, head, note, head_dim), not yet rotated.
        values: per layer, the same shape.
        seconds: (batch, note) onsets of the remembered notes.
        seen: notes that went in so far.
    """

    keys: list[torch.Tensor] = field(default_factory=list)
    values: list[torch.Tensor] = field(default_factory=list)
    seconds: torch.Tensor | None = None
    seen: int = 0


def rotary_table(
    places: torch.Tensor, seconds: torch.Tensor, head_dim: int, periods: tuple[float, float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of rotary codes (Su et al., arXiv 2104.09864) over two clocks.

    A quarter of the head's pairs turn with the note's place in the sequence, the rest with its onset, so that a product of
    query and key knows how many notes and how many seconds lie between them, and nothing of either alone.

    Args:
        places: (batch, note) places in the sequence.
        seconds: (batch, note) onsets.
        head_dim: size of a head, a multiple of 4.
        periods: shortest and longest wavelength in seconds.

    Returns:
        two tensors (batch, 1, note, head_dim / 2) in float32.
    """
    half = head_dim // 2
    by_place = half // 2
    places, seconds = places.float(), seconds.float()
    order = 2 * math.pi / torch.logspace(math.log10(2.5), 3.0, by_place, device=places.device)
    low, high = (math.log10(period) for period in periods)
    clock = 2 * math.pi / torch.logspace(low, high, half - by_place, device=places.device)
    angles = torch.cat([places[..., None] * order, seconds[..., None] * clock], dim=-1).unsqueeze(1)
    return angles.cos(), angles.sin()


class NoteAttention(nn.Module):
    """Causal attention within a window of notes; keys are kept unrotated, so that any length stays exact."""

    def __init__(self, config: NoteTransformerConfig, layer_idx: int) -> None:
        super().__init__()
        self.num_heads, self.window, self.layer_idx = config.num_attention_heads, config.window, layer_idx
        self.attn_implementation = "sdpa"
        self.periods = (config.min_period_in_s, config.max_period_in_s)
        self.qkv_proj = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, hidden: torch.Tensor, seconds: torch.Tensor, cache: NoteCache | None) -> torch.Tensor:
        """(batch, note, hidden) and onsets (batch, past + note) -> (batch, note, hidden)."""
        query, key, value = (split_heads(part, self.num_heads) for part in self.qkv_proj(hidden).chunk(3, dim=-1))
        if cache is not None:
            key, value = self._remember(key, value, cache)
        steps, keys = query.shape[2], key.shape[2]
        # Counted from the newest note: only differences matter, and small numbers keep float32's angles exact.
        places = torch.arange(1 - keys, 1, device=hidden.device).expand(len(hidden), -1)
        cosine, sine = rotary_table(places, seconds - seconds[:, -1:], query.shape[-1], self.periods)
        key = rotate(key, cosine, sine)
        query = rotate(query, cosine[:, :, -steps:], sine[:, :, -steps:])
        # A single new note sees all that is remembered, which the cache has cut to the window already.
        mask = None
        if steps > 1:
            mask = band_mask(places[0, -steps:], places[0], self.window - 1, 0)
        attended, _ = attend(self, query, key, value, mask)  # (batch, note, head, head_dim)
        return self.out_proj(attended.flatten(2))

    def _remember(self, key: torch.Tensor, value: torch.Tensor, cache: NoteCache) -> tuple[torch.Tensor, torch.Tensor]:
        if len(cache.keys) > self.layer_idx:
            key = torch.cat([cache.keys[self.layer_idx], key], dim=2)
            value = torch.cat([cache.values[self.layer_idx], value], dim=2)
            cache.keys[self.layer_idx], cache.values[self.layer_idx] = self._last(key), self._last(value)
        else:
            cache.keys.append(self._last(key))
            cache.values.append(self._last(value))
        return key, value

    def _last(self, values: torch.Tensor) -> torch.Tensor:
        return values[:, :, max(values.shape[2] - self.window + 1, 0) :]


class NoteBlock(GradientCheckpointingLayer):
    """Attention and a gated perceptron (Shazeer, arXiv 2002.05202), each behind a norm and added to its input."""

    def __init__(self, config: NoteTransformerConfig, layer_idx: int) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.hidden_size, eps=1e-6)
        self.attention = NoteAttention(config, layer_idx)
        self.mlp_norm = nn.RMSNorm(config.hidden_size, eps=1e-6)
        self.gate_up_proj = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden: torch.Tensor, seconds: torch.Tensor, cache: NoteCache | None) -> torch.Tensor:
        """See `NoteAttention.forward`."""
        hidden = hidden + self.dropout(self.attention(self.attention_norm(hidden), seconds, cache))
        gate, up = self.gate_up_proj(self.mlp_norm(hidden)).chunk(2, dim=-1)
        return hidden + self.dropout(self.down_proj(silu(gate) * up))


class NoteEmbedding(nn.Module):
    """A position as a vector: the sum of its role's row and, where it is a note, of its attributes' rows."""

    def __init__(self, config: NoteTransformerConfig, num_roles: int) -> None:
        super().__init__()
        self.roles = nn.Embedding(num_roles, config.hidden_size)
        # One table for all attributes: the rows of attribute a begin at offsets[a].
        self.attributes = nn.Embedding(sum(config.vocab_sizes), config.hidden_size)
        self.offsets = [sum(config.vocab_sizes[:index]) for index in range(config.num_attributes)]

    def forward(self, roles: torch.Tensor, attributes: torch.Tensor, is_note: torch.Tensor) -> torch.Tensor:
        """(batch, position), (batch, position, attribute), (batch, position) bool -> (batch, position, hidden)."""
        rows = attributes + torch.tensor(self.offsets, device=attributes.device)
        return self.roles(roles) + self.attributes(rows).sum(2) * is_note[..., None]


class AttributeHead(nn.Module):
    """Logits of one attribute given the context and the attributes that the note has already."""

    def __init__(self, config: NoteTransformerConfig, vocab_size: int) -> None:
        super().__init__()
        width = config.hidden_size
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.up_proj = nn.Linear(width, 2 * width)
        self.down_proj = nn.Linear(2 * width, width)
        self.out_norm = nn.RMSNorm(width, eps=1e-6)
        self.classifier = nn.Linear(width, vocab_size)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(..., hidden) -> (..., value)."""
        hidden = hidden + self.down_proj(gelu(self.up_proj(self.norm(hidden))))
        return self.classifier(self.out_norm(hidden))


class NoteHead(nn.Module):
    """A note's attributes one after the other: each head sees the context and the rows of the values before it."""

    def __init__(self, config: NoteTransformerConfig) -> None:
        super().__init__()
        self.heads = nn.ModuleList([AttributeHead(config, size) for size in config.vocab_sizes])
        self.chosen = nn.ModuleList([nn.Embedding(size, config.hidden_size) for size in config.vocab_sizes[:-1]])

    def forward(self, context: torch.Tensor, attributes: torch.Tensor) -> list[torch.Tensor]:
        """Logits of every attribute with the true values before it.

        Args:
            context: (..., hidden).
            attributes: (..., attribute) int64.

        Returns:
            a tensor (..., value) per attribute.
        """
        logits = []
        for index, head in enumerate(self.heads):
            logits.append(head(context))
            if index < len(self.chosen):
                context = context + self.chosen[index](attributes[..., index])
        return logits


__all__ = ["NoteBlock", "NoteCache", "NoteEmbedding", "NoteHead", "rotary_table"]
