"""The note transformer equals its formulas, computed again note by note in plain float64 arithmetic."""

from __future__ import annotations

import math

import torch
from plain_layers import gelu, linear, shake, silu

from melreformer_hf.models.note_transformer.configuration_note_transformer import NoteTransformerConfig
from melreformer_hf.models.note_transformer.modeling_note_transformer import NoteTransformerModel

SIZES, WINDOW, HEADS, WIDTH = (5, 7, 3), 3, 2, 32
CONFIG = NoteTransformerConfig.preset(
    "test", vocab_sizes=SIZES, window=WINDOW, min_period_in_s=0.5, max_period_in_s=40.0
)


def rms(layer: torch.nn.RMSNorm, x: torch.Tensor) -> torch.Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * layer.weight


def embedded(model, roles: torch.Tensor, attributes: torch.Tensor) -> torch.Tensor:
    """Marks (roles 0 and 1) have no attributes; the table holds one attribute after the other."""
    hidden = model.embedding.roles.weight[roles].clone()
    for row, position in (roles >= 2).nonzero().tolist():
        for begin, value in zip((0, 5, 12), attributes[row, position].tolist(), strict=True):
            hidden[row, position] += model.embedding.attributes.weight[begin + value]
    return hidden


def turned(x: torch.Tensor, place: int, seconds: float) -> torch.Tensor:
    """(head, 16): pairs (i, i + 8), four of which turn with the place, four with the time."""
    periods = [2.5 * 400 ** (index / 3) for index in range(4)]
    clocks = [0.5 * 80 ** (index / 3) for index in range(4)]
    angles = [place / period for period in periods] + [seconds / period for period in clocks]
    z = torch.complex(x[:, :8], x[:, 8:]) * torch.exp(2j * math.pi * torch.tensor(angles, dtype=torch.float64))
    return torch.cat([z.real, z.imag], dim=-1)


def attended(layer, x: torch.Tensor, seconds: torch.Tensor) -> torch.Tensor:
    """Every note looks at itself and the two before it."""
    query, key, value = linear(layer.qkv_proj, x).reshape(*x.shape[:2], 3, HEADS, WIDTH // HEADS).unbind(2)
    mixed = torch.zeros_like(x)
    for row in range(len(x)):
        for step in range(x.shape[1]):
            seen = range(max(0, step - WINDOW + 1), step + 1)
            asking = turned(query[row, step], step, float(seconds[row, step]))
            keys = torch.stack([turned(key[row, other], other, float(seconds[row, other])) for other in seen])
            scores = torch.einsum("hd,khd->hk", asking, keys) / math.sqrt(WIDTH / HEADS)
            mixed[row, step] = torch.einsum("hk,khd->hd", scores.softmax(-1), value[row, list(seen)]).flatten()
    return linear(layer.out_proj, mixed)


def contexts(
    model, roles: torch.Tensor, attributes: torch.Tensor, seconds: torch.Tensor, upcoming: torch.Tensor
) -> torch.Tensor:
    hidden = embedded(model, roles, attributes)
    for place, table in enumerate(model.embedding.upcoming):  # times and pitches in turns, 0 for none
        hidden = hidden + table.weight[upcoming[..., place]] * (upcoming[..., place] > 0)[..., None]
    for layer in model.layers:
        hidden = hidden + attended(layer.attention, rms(layer.attention_norm, hidden), seconds)
        gate, up = linear(layer.gate_up_proj, rms(layer.mlp_norm, hidden)).chunk(2, dim=-1)
        hidden = hidden + linear(layer.down_proj, silu(gate) * up)
    return rms(model.norm, hidden)


def test_contexts_and_logits():
    model = shake(NoteTransformerModel(CONFIG), std=0.4)
    random = torch.Generator().manual_seed(1)
    roles = torch.tensor([[0, 2, 3, 2, 2, 3, 2], [1, 2, 2, 1, 3, 2, 2]])
    attributes = torch.stack([torch.randint(size, (2, 7), generator=random) for size in SIZES], dim=-1)
    seconds = torch.rand(2, 7, generator=random).cumsum(1)
    upcoming = torch.stack([torch.randint(size, (2, 7), generator=random) for size in (5, 8, 5, 8)], dim=-1)
    assert [table.num_embeddings for table in model.embedding.upcoming] == [5, 8, 5, 8]
    with torch.no_grad():
        for table in model.embedding.upcoming:
            table.weight[0] = 0.0  # as it is made, and stays: nothing is nothing
        made = model(roles, attributes, seconds, upcoming).last_hidden_state
        logits = model.head(made, attributes)
        plain = model.double()
        expected = contexts(plain, roles, attributes, seconds.double(), upcoming)
        torch.testing.assert_close(made.double(), expected, rtol=1e-4, atol=1e-4)
        context = expected
        for index, (head, values) in enumerate(zip(plain.head.heads, logits, strict=True)):
            hidden = context + linear(head.down_proj, gelu(linear(head.up_proj, rms(head.norm, context))))
            own = linear(head.classifier, rms(head.out_norm, hidden))
            torch.testing.assert_close(values.double(), own, rtol=1e-3, atol=1e-3)
            if index < 2:  # the next head knows this attribute
                context = context + plain.head.chosen[index].weight[attributes[..., index]]
