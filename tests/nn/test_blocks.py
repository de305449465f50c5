"""Blocks of the package equal their formulas, computed here in plain arithmetic with random weights everywhere."""

from __future__ import annotations

import math

import pytest
import torch
from plain_layers import conv1d, convnext, mlp, neighbor_attention, shake, windowed_attention
from torch.testing import assert_close

from melreformer_hf.models.hifi_vocoder.activations_hifi_vocoder import UpDownSnake, low_pass_taps, snake
from melreformer_hf.nn.attention import FeedForward, NeighborAttention, WindowedSelfAttention, eager_attention
from melreformer_hf.nn.conv import SameConv1d, UpsamplingConv1d
from melreformer_hf.nn.convnext import ConvNeXtBlock
from melreformer_hf.nn.positions import sinusoidal_table

GENERATOR = torch.Generator().manual_seed(0)


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=GENERATOR)


@torch.no_grad()
def test_convnext_block():
    block, hidden = shake(ConvNeXtBlock(6, 10, 5)), randn(2, 6, 9)
    assert_close(block(hidden), convnext(block, hidden), rtol=1e-5, atol=1e-5)


def test_convnext_block_reaches_as_far_as_it_says():
    block, hidden = shake(ConvNeXtBlock(4, 8, 3, dilation=2)), randn(1, 4, 15).requires_grad_(True)
    block(hidden)[0, :, 7].sum().backward()
    touched = hidden.grad.abs().sum((0, 1)).nonzero().flatten()
    assert (touched.min(), touched.max()) == (7 - block.reach, 7 + block.reach)


@torch.no_grad()
def test_feed_forward():
    block, hidden = shake(FeedForward(6, 10)), randn(2, 4, 6)
    assert_close(block(hidden), mlp(block, hidden), rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("before", "after"), [(3, 0), (2, 2), (0, 1), (20, 0)])
def test_windowed_attention_and_its_reach(before, after):
    layer, hidden = shake(WindowedSelfAttention(8, 2, before, after)), randn(2, 9, 8)
    assert_close(layer(hidden)[0], windowed_attention(layer, hidden), rtol=1e-4, atol=1e-5)
    _, (key, value) = layer(hidden)
    assert key.shape == value.shape == (2, 2, min(before, 9), 4), "the cache holds what a later step sees"


@torch.no_grad()
@pytest.mark.parametrize("reach", [0, 1, 4])
def test_neighbor_attention_and_its_reach(reach):
    layer, hidden, states = shake(NeighborAttention(8, 2, reach)), randn(2, 5, 8), randn(2, 7, 8)
    place = torch.tensor([[-0.5, 0.2, 3.4, 5.9, 6.4], [0.0, 1.0, 2.6, 2.4, 6.0]])
    actual = layer(hidden, layer.memory(states), place)
    assert_close(actual, neighbor_attention(layer, hidden, states, place), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_eager_attention_of_masks_scales_and_rows_that_see_nothing():
    query, key, value = randn(1, 2, 3, 4), randn(1, 2, 5, 4), randn(1, 2, 5, 4)
    mask = torch.tensor([[1, 0, 1, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]]).bool()
    made, weights = eager_attention(torch.nn.Module(), query, key, value, mask, scaling=0.3)
    scores = (0.3 * query @ key.mT).exp() * mask
    expected = scores / scores.sum(-1, keepdim=True).clamp(min=1e-30)
    assert_close(weights, expected)
    assert_close(made, (expected @ value).transpose(1, 2))
    assert not made[:, 1].any()
    causal, _ = eager_attention(torch.nn.Module(), query, key[:, :, :3], value[:, :, :3], None, is_causal=True)
    scores = (query @ key[:, :, :3].mT / 2).exp().tril()
    assert_close(causal, (scores / scores.sum(-1, keepdim=True) @ value[:, :, :3]).transpose(1, 2))


def test_low_pass_taps():
    """sin(2 pi f t) / (2 pi f t) around the middle, scaled to a sum of one."""
    places = [-1.5, -0.5, 0.5, 1.5]
    raw = [math.sin(2 * math.pi * 0.2 * t) / (2 * math.pi * 0.2 * t) for t in places]
    assert_close(low_pass_taps(4, 0.2), torch.tensor([value / sum(raw) for value in raw]))


@torch.no_grad()
@pytest.mark.parametrize("taps", [4, 5, 12])
def test_filtered_snake_and_even_kernels(taps):
    """Of an even number of taps the one more lies to the right, in both filters."""
    module, hidden = shake(UpDownSnake(3, taps)), randn(2, 3, 14)
    module.alpha.abs_().add_(0.2)
    before = (taps - 1) // 2
    first = conv1d(module.filter_before, None, hidden, before, groups=3)
    alpha = module.alpha[:, None]
    waved = first + (alpha * first).sin() ** 2 / (alpha + 1e-8)
    assert_close(snake(first, module.alpha), waved)
    assert_close(module(hidden), conv1d(module.filter_after, None, waved, before, groups=3), rtol=1e-4, atol=1e-5)
    assert module.reach == (2 * before, 2 * (taps - 1 - before))


@torch.no_grad()
@pytest.mark.parametrize(("kernel", "dilation"), [(3, 1), (4, 1), (3, 2), (4, 3), (1, 1)])
def test_same_convolutions_of_even_kernels(kernel, dilation):
    conv, hidden = shake(SameConv1d(2, 3, kernel, dilation)), randn(1, 2, 11)
    total = dilation * (kernel - 1)
    spread = torch.zeros(3, 2, total + 1)
    spread[..., ::dilation] = conv.weight
    assert_close(conv(hidden), conv1d(spread, conv.bias, hidden, total // 2), rtol=1e-5, atol=1e-5)
    assert conv.reach == (total // 2, total - total // 2)


@torch.no_grad()
@pytest.mark.parametrize(("kernel", "rate"), [(4, 2), (5, 2), (6, 3), (7, 4)])
def test_upsampling_convolution(kernel, rate):
    """Sample n of input frame t: the taps k with n = t rate + k - (kernel - rate) // 2."""
    conv, hidden = shake(UpsamplingConv1d(2, 3, kernel, rate)), randn(1, 2, 5)
    actual, shift = conv(hidden), (kernel - rate) // 2
    expected = torch.zeros_like(actual) + conv.bias[:, None]
    for frame in range(5):
        for tap in range(kernel):
            sample = frame * rate + tap - shift
            if 0 <= sample < actual.shape[-1]:
                expected[0, :, sample] += hidden[0, :, frame] @ conv.weight[:, :, tap]
    assert actual.shape[-1] == 5 * rate + (kernel - rate) % 2
    assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_sinusoidal_table():
    table = sinusoidal_table(4, 6)
    for place in range(4):
        for pair in range(3):
            angle = place / 10000 ** (2 * pair / 6)
            assert_close(table[place, 2 * pair : 2 * pair + 2], torch.tensor([math.sin(angle), math.cos(angle)]))
