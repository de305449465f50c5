"""Blocks of the note transformer: attention over order and time, and the heads that write a note."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn.functional import gelu, pad, silu
from transformers.modeling_layers import GradientCheckpointingLayer

from melreformer_hf.models.note_transformer.configuration_note_transformer import NoteTransformerConfig
from melreformer_hf.nn.attention import attend, band_mask, split_heads
from melreformer_hf.nn.positions import rotate


def rotary_rates(
    config: NoteTransformerConfig, device: torch.device | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """How fast a head's pairs of channels turn with each of two clocks, in radians per note and per second.

    A quarter of the pairs turn with the note's place in the sequence, the rest with its onset, so that a product of query
    and key knows how many notes and how many seconds lie between them, and nothing of either alone.

    Returns:
        two tensors (head_dim / 2,) in float32, each zero where the other is not.
    """
    half = config.hidden_size // config.num_attention_heads // 2
    by_place = half // 2
    low, high = math.log10(config.min_period_in_s), math.log10(config.max_period_in_s)
    order = 2 * math.pi / torch.logspace(math.log10(2.5), 3.0, by_place, device=device)
    clock = 2 * math.pi / torch.logspace(low, high, half - by_place, device=device)
    return pad(order, (0, half - by_place)), pad(clock, (by_place, 0))


def rotary_table(
    places: torch.Tensor, seconds: torch.Tensor, rates: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of rotary codes (Su et al., arXiv 2104.09864) over two clocks.

    Args:
        places: (batch, note) places in the sequence.
        seconds: (batch, note) onsets.
        rates: see `rotary_rates`.

    Returns:
        two tensors (batch, 1, note, head_dim / 2) in float32.
    """
    order, clock = rates
    angles = places.float()[:, None, :, None] * order + seconds.float()[:, None, :, None] * clock
    return angles.cos(), angles.sin()


class NoteCache:
    """What the layers remember of the notes before: those of the last `window`, whatever the piece's length.

    Each layer's keys and values lie in a ring: a note takes the place of the one that has left the window. Keys are kept turned
    to a common anchor in order and time, so that a new note turns its own alone; the anchor follows at every `window` notes,
    because small angles are exact ones. No gradient flows through what is remembered.

    Args:
        config: of the model.

    Attributes:
        keys: per layer (batch, head, window, head_dim).
        values: per layer, the same shape.
        seen: notes that went in so far.
    """

    def __init__(self, config: NoteTransformerConfig) -> None:
        self.window, self.config = config.window, config
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []
        self.seen = 0
        self._anchor, self._anchor_seconds = 0, torch.zeros(1, 1)
        self._rates: tuple[torch.Tensor, torch.Tensor] | None = None

    def rotary(self, seconds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The `rotary_table` of new notes at (batch, note) seconds, counted from the anchor."""
        if self._rates is None:
            self._rates, self._anchor_seconds = rotary_rates(self.config, seconds.device), seconds[:, :1]
        elif self.seen - self._anchor >= self.window:
            self._move_anchor(seconds[:, :1])
        first = self.seen - self._anchor
        places = torch.arange(first, first + seconds.shape[1], device=seconds.device)[None]
        return rotary_table(places, seconds - self._anchor_seconds, self._rates)

    def _move_anchor(self, seconds: torch.Tensor) -> None:
        moved = torch.full_like(seconds, self.seen - self._anchor, dtype=torch.long)
        for index, keys in enumerate(self.keys):
            turn = rotary_table(moved, seconds - self._anchor_seconds, self._rates)
            self.keys[index] = rotate(keys, turn[0], -turn[1])
        self._anchor, self._anchor_seconds = self.seen, seconds

    def mask(self, steps: int, device: torch.device) -> torch.Tensor | None:
        """Which of the remembered and of `steps` new notes each new one sees; `None` where it sees all of them."""
        if steps == 1:
            return None
        filled = min(self.seen, self.window)
        slots = torch.arange(filled, device=device)
        new = torch.arange(self.seen, self.seen + steps, device=device)
        old = self.seen - 1 - (self.seen - 1 - slots) % self.window
        return band_mask(new, torch.cat([old, new]), self.window - 1, 0)

    def join(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of a layer that new notes see, theirs included, which are remembered."""
        if layer == len(self.keys):
            shape = (*key.shape[:2], self.window, key.shape[3])
            self.keys.append(key.new_zeros(shape))
            self.values.append(value.new_zeros(shape))
        return self._join(self.keys[layer], key.detach()), self._join(self.values[layer], value.detach())

    def _join(self, ring: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        steps = new.shape[2]
        if steps == 1:  # it takes the place of the one that it does not see any more
            ring.narrow(2, self.seen % self.window, 1).copy_(new)
            return ring if self.seen >= self.window else ring[:, :, : self.seen + 1]
        joined = torch.cat([ring[:, :, : self.seen], new], dim=2)
        last = torch.arange(self.seen, self.seen + steps)[-self.window :] % self.window
        ring[:, :, last.to(ring.device)] = new[:, :, -self.window :]
        return joined


class NoteAttention(nn.Module):
    """Causal attention within a window of notes."""

    def __init__(self, config: NoteTransformerConfig, layer_idx: int) -> None:
        super().__init__()
        self.num_heads, self.layer_idx = config.num_attention_heads, layer_idx
        self.attn_implementation = "sdpa"
        self.qkv_proj = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(
        self,
        hidden: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor],
        mask: torch.Tensor | None,
        cache: NoteCache | None,
    ) -> torch.Tensor:
        """(batch, note, hidden), their `rotary_table`, (note, key) bool -> (batch, note, hidden)."""
        heads = split_heads(self.qkv_proj(hidden), 3 * self.num_heads)  # of queries, of keys, of values
        turning, value = heads.split((2 * self.num_heads, self.num_heads), dim=1)
        query, key = rotate(turning, *rotary).chunk(2, dim=1)
        if cache is not None:
            key, value = cache.join(self.layer_idx, key, value)
        attended, _ = attend(self, query, key, value, mask)  # (batch, note, head, head_dim)
        return self.out_proj(attended.flatten(2))


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

    def forward(
        self,
        hidden: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor],
        mask: torch.Tensor | None,
        cache: NoteCache | None,
    ) -> torch.Tensor:
        """See `NoteAttention.forward`."""
        hidden = hidden + self.dropout(self.attention(self.attention_norm(hidden), rotary, mask, cache))
        gate, up = self.gate_up_proj(self.mlp_norm(hidden)).chunk(2, dim=-1)
        return hidden + self.dropout(self.down_proj(silu(gate) * up))


class NoteEmbedding(nn.Module):
    """A position as a vector: the sum of its role's row, where it is a note of its attributes' rows, and of what is given next."""

    def __init__(self, config: NoteTransformerConfig, num_roles: int) -> None:
        super().__init__()
        self.roles = nn.Embedding(num_roles, config.hidden_size)
        # One table for all attributes: the rows of attribute a begin at offsets[a].
        self.attributes = nn.Embedding(sum(config.vocab_sizes), config.hidden_size)
        self.sizes = tuple(config.vocab_sizes)
        self.register_buffer("offsets", self.initial_offsets(), persistent=False)
        # Times leave one value out, the end, and win one, nothing; row 0 is nothing and stays zero.
        sizes = (config.vocab_sizes[0], config.vocab_sizes[1] + 1) * config.num_upcoming
        self.upcoming = nn.ModuleList([nn.Embedding(size, config.hidden_size, padding_idx=0) for size in sizes])

    def initial_offsets(self) -> torch.Tensor:
        """(attribute,) int64, where each attribute's rows begin."""
        return torch.tensor([sum(self.sizes[:index]) for index in range(len(self.sizes))])

    def forward(
        self, roles: torch.Tensor, attributes: torch.Tensor, is_note: torch.Tensor, upcoming: torch.Tensor | None
    ) -> torch.Tensor:
        """(batch, position, hidden) of what `NoteTransformerModel.forward` describes; `is_note`: (batch, position) bool."""
        hidden = self.roles(roles) + self.attributes(attributes + self.offsets).sum(2) * is_note[..., None]
        if upcoming is not None:
            for table, values in zip(self.upcoming, upcoming.unbind(-1), strict=True):
                hidden = hidden + table(values)
        return hidden


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


__all__ = ["NoteBlock", "NoteCache", "NoteEmbedding", "NoteHead", "rotary_rates", "rotary_table"]
