"""The local expansion equals its formula, computed in plain arithmetic with random weights everywhere."""

from __future__ import annotations

import math

import pytest
import torch
from plain_layers import convnext, linear, mlp, neighbor_attention, norm, shake, silu, windowed_attention
from torch.nn.functional import conv1d, conv2d
from torch.testing import assert_close

from melreformer_hf.models.mel_reformer.configuration_mel_reformer import MelReformerConfig
from melreformer_hf.models.mel_reformer.modeling_mel_reformer import MelReformerModel

BINS, COLUMNS, FOLD = 6, 5, 3
CONFIG = MelReformerConfig(
    mel={"num_mel_bins": BINS, "n_fft": 256, "win_length": 256, "hop_length": 64},
    idea_columns=COLUMNS,
    fold_size=FOLD,
    hidden_size=8,
    intermediate_size=12,
    num_encoder_layers=1,
    num_decoder_layers=2,
    num_attention_heads=2,
    encoder_window=2,
    decoder_window=2,
    cross_reach=1,
    context_frames=2,
    postnet_size=6,
    postnet_layers=1,
    postnet_kernel=3,
    band_channels=(3, 4),
    band_blocks=1,
    num_bases=2,
    frames_per_column=(1.0, 64.0),
    mel_shift=-3.0,
    mel_scale=2.0,
)
FRAMES = torch.tensor([17, 12])
STARTS = torch.tensor([4, 0])
LENGTH = 7


@pytest.fixture(scope="module")
def model():
    return shake(MelReformerModel(CONFIG), std=0.25)


def stretches() -> torch.Tensor:
    """log2 of the frames per column, 0 at 8 and 1 at 64: (batch,)."""
    return torch.tensor([(math.log2(frames / COLUMNS) - 3) / 3 for frames in FRAMES.tolist()])


def residual_block(block, x: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
    scale, shift = linear(block.modulation, told)[..., None, None].chunk(2, dim=1)
    first = conv2d(silu(x), block.first.weight, block.first.bias, padding=1) * (1 + scale) + shift
    return x + conv2d(silu(first), block.second.weight, block.second.bias, padding=1)


def encode(encoder, idea: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    stretch = stretches()
    told = silu(linear(encoder.stretch[0], torch.stack([stretch, stretch**2], dim=-1)))
    told = silu(linear(encoder.stretch[2], told))
    top = conv2d(idea[:, None], encoder.stem.weight, encoder.stem.bias, padding=2) + encoder.place
    top = residual_block(encoder.down_blocks[0][0], top, told)
    low = conv2d(top, encoder.down[0].weight, encoder.down[0].bias, stride=(2, 1), padding=1)
    low = residual_block(encoder.down_blocks[1][0], low, told)
    columns = linear(encoder.to_states, low.permute(0, 3, 1, 2).flatten(2))
    columns = columns + linear(encoder.stretch_to_states, told)[:, None]
    layer = encoder.layers[0]
    columns = columns + windowed_attention(layer.attention, columns)
    states = norm(encoder.norm, columns + mlp(layer.feed_forward, columns))
    low = low + linear(encoder.from_states, states).reshape(2, COLUMNS, 4, BINS // 2).permute(0, 2, 3, 1)
    up = conv2d(low, encoder.up[0].weight, encoder.up[0].bias)
    top = residual_block(encoder.up_blocks[0][0], top + up.repeat_interleave(2, dim=2), told)
    heads = conv2d(silu(top), encoder.head.weight, encoder.head.bias)  # (batch, base, band, column)
    return states, heads


def column_place(row: int, frame: float) -> float:
    """Time of a place on the frame axis in columns, whose centers are whole numbers."""
    return frame * COLUMNS / int(FRAMES[row]) - 0.5


def interpolated(values: torch.Tensor, place: float) -> torch.Tensor:
    """(column, value) at a place between two columns, constant beyond the outer centers."""
    place = min(max(place, 0.0), COLUMNS - 1.0)
    lower = min(int(place), COLUMNS - 2)
    return values[lower] + (values[lower + 1] - values[lower]) * (place - lower)


def drawn(curves, idea: torch.Tensor, heads: torch.Tensor, row: int, frame: int) -> torch.Tensor:
    """The encoder's drawing of one frame, which may lie outside the piece: (mel,)."""
    place = min(max(column_place(row, frame + 0.5) + 0.5, 0.0), COLUMNS)
    column = min(int(place), COLUMNS - 1)
    inside, stretch = place - column, stretches()[row]
    waves = inside * math.pi * torch.arange(1.0, 9.0)
    told = torch.cat([torch.tensor([inside, stretch, stretch**2]), waves.sin(), waves.cos()])
    layers = curves.curves
    weights = linear(layers[4], silu(linear(layers[2], silu(linear(layers[0], told)))))
    change = torch.einsum("kb,k->b", heads[row, :, :, column], weights)
    return interpolated(idea[row].T, column_place(row, frame + 0.5)) + change


def decode(decoder, idea, states, heads, tokens, steps) -> tuple[torch.Tensor, torch.Tensor]:
    """All steps of a stretch: made columns and the drawing under them, (batch, mel, frame)."""
    place = torch.zeros(2, steps)
    around = torch.zeros(2, steps, BINS, FOLD + 4)
    aligned = torch.zeros(2, steps, 8)
    for row in range(2):
        for step in range(steps):
            start = int(STARTS[row]) + step * FOLD
            place[row, step] = column_place(row, start + FOLD / 2)
            aligned[row, step] = interpolated(states[row], float(place[row, step]))
            for index in range(FOLD + 4):
                around[row, step, :, index] = drawn(decoder.curves, idea, heads, row, start - 2 + index)
    hidden = linear(decoder.previous, tokens) + linear(decoder.surrounding, around.flatten(2))
    hidden = hidden + linear(decoder.aligned, aligned)
    for layer in decoder.layers:
        hidden = hidden + windowed_attention(layer.self_attention, hidden)
        hidden = hidden + neighbor_attention(layer.cross_attention, hidden, states, place)
        hidden = hidden + mlp(layer.feed_forward, hidden)
    change = linear(decoder.head, norm(decoder.norm, hidden)).reshape(2, steps, BINS, FOLD)
    base = around[..., 2 : 2 + FOLD]
    together = [part.permute(0, 2, 1, 3).flatten(2) for part in (base + change, base)]
    return together[0], together[1]


def improve(postnet, made: torch.Tensor, base: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    hidden = conv1d(torch.cat([made, base], dim=1) * inside, postnet.stem.weight, postnet.stem.bias, padding=1)
    hidden = convnext(postnet.blocks[0], hidden * inside)
    return made + linear(postnet.head, norm(postnet.norm, hidden.transpose(1, 2))).transpose(1, 2)


@torch.no_grad()
def test_teacher_forced_stretch_and_its_loss(model):
    generator = torch.Generator().manual_seed(2)
    mel, labels, before = (torch.randn(2, BINS, n, generator=generator) * 2 - 3 for n in (COLUMNS, LENGTH, FOLD))
    output = model(mel, FRAMES, labels, start_frames=STARTS, previous_features=before)

    idea, target = (mel + 3) / 2, (labels + 3) / 2
    steps = -(-LENGTH // FOLD)
    states, heads = encode(model.expansion.encoder, idea)
    # Step s is told the window before it, band by band; what is beyond the labels is silence.
    told = torch.cat([(before + 3) / 2, target], dim=-1)[..., : steps * FOLD]
    tokens = told.reshape(2, BINS, steps, FOLD).transpose(1, 2).flatten(2)
    made, base = decode(model.expansion.decoder, idea, states, heads, tokens, steps)
    made, base = made[..., :LENGTH], base[..., :LENGTH]
    frames = STARTS[:, None] + torch.arange(LENGTH)
    inside = ((frames >= 0) & (frames < FRAMES[:, None]))[:, None].float()
    improved = improve(model.expansion.postnet, made, base, inside)
    for name, expected in (("encoder", base), ("decoder", made), ("output", improved)):
        actual = getattr(output, f"{name}_features")
        assert_close(actual, expected * 2 - 3, rtol=1e-4, atol=2e-4, msg=lambda m, name=name: f"{name}: {m}")
    wrong = (improved - target).abs() + 0.5 * (made - target).abs() + 0.5 * (base - target).abs()
    assert_close(output.loss, 2 * (wrong * inside).sum() / (inside.sum() * BINS), rtol=1e-4, atol=1e-5)
