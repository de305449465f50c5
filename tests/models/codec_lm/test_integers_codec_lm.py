"""Exact arithmetic: no order of summation changes a bit, and results stay close to floating ones."""

from __future__ import annotations

import math

import pytest
import torch

from melreformer_hf.models.codec_lm.integers_codec_lm import (
    EXACT_BITS,
    FixedPointLinear,
    FixedPointNorm,
    FixedPointPositions,
    attend_integers,
    attention_bits,
    cumulative_ranges,
    exp,
    gelu,
    to_integers,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def order(size: int) -> torch.Tensor:
    return torch.randperm(size, generator=torch.Generator().manual_seed(9))


def test_integers_count_a_power_of_two():
    values = torch.stack([normal(50), 1e30 * normal(50), 1e-30 * normal(50), torch.zeros(50, dtype=torch.float64)])
    values[0, 3] = 4.0  # a power of two itself
    integers, step = to_integers(values, 20)
    assert torch.equal(integers, integers.round()) and integers.abs().max() <= 2**20
    assert (torch.frexp(step).mantissa == 0.5).all()
    error = (integers * step - values).abs().amax(dim=-1)
    assert (error <= values.abs().amax(dim=-1) * 2.0**-20).all()


@pytest.mark.parametrize("size", [3, 200, 4096])
def test_linear_layers(size):
    weight, bias, values, shuffled = normal(17, size), normal(17, seed=1), normal(5, size, seed=2), order(size)
    layer = FixedPointLinear(weight, bias)
    result = layer(values)
    assert torch.equal(FixedPointLinear(weight[:, shuffled], bias)(values[:, shuffled]), result)
    assert torch.equal(torch.cat([layer(row[None]) for row in values]), result)
    assert torch.equal(layer(values, 4), result[:, :4])
    torch.testing.assert_close(result, values @ weight.T + bias, rtol=1e-4, atol=1e-4 * math.sqrt(size))
    # The largest integers there can be still add up exactly.
    assert size * 2**layer.bits * layer.weight.abs().max() <= 2 ** (EXACT_BITS + 1)


def test_layers_too_wide_for_exact_sums_are_refused():
    with pytest.raises(ValueError, match="65537"):
        FixedPointLinear(torch.zeros(1, 65537), torch.zeros(1))


def test_norm():
    weight, bias, values, shuffled = normal(200), normal(200, seed=1), 3 + 5 * normal(6, 200, seed=2), order(200)
    result = FixedPointNorm(weight, bias, 1e-5)(values)
    again = FixedPointNorm(weight[shuffled], bias[shuffled], 1e-5)(values[:, shuffled])
    assert torch.equal(again, result[:, shuffled])
    expected = torch.nn.functional.layer_norm(values, (200,), weight, bias, 1e-5)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


def test_functions():
    values = torch.cat([-40 * torch.rand(999, dtype=torch.float64), torch.tensor([0.0, 1.0, -800.0, -math.inf])])
    torch.testing.assert_close(exp(values[:-2]), values[:-2].exp(), rtol=1e-14, atol=0)
    assert (exp(values[-2:]) < 1e-300).all() and exp(torch.zeros(1, dtype=torch.float64)) == 1
    assert torch.equal(torch.cat([exp(value) for value in values.split(1)]), exp(values))
    inner = 4 * normal(1000)
    torch.testing.assert_close(gelu(inner), torch.nn.functional.gelu(inner), rtol=0, atol=1e-6)
    assert torch.equal(torch.cat([gelu(value) for value in inner.split(1)]), gelu(inner))


def test_attention():
    most, query, key, value = 30, normal(2, 3, 4, 8), normal(2, 3, 30, 8, seed=1), 10 * normal(2, 3, 30, 8, seed=2)
    visible = torch.rand(4, 30, generator=torch.Generator().manual_seed(3)) > 0.4

    def attended(keys: torch.Tensor) -> torch.Tensor:
        key_parts = to_integers(key[:, :, keys], attention_bits(8))
        return attend_integers(
            query, key_parts, to_integers(value[:, :, keys], attention_bits(most)), visible[:, keys], most
        )

    result = attended(torch.arange(30))
    assert torch.equal(attended(order(30)), result)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=visible)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)
    # Keys that are not seen change nothing, however large.
    seen = visible.any(dim=0).nonzero().flatten()
    visible[:, 7] = False
    before, value[:, :, 7], key[:, :, 7] = attended(torch.arange(30)), 1e9, 1e9
    assert torch.equal(attended(torch.arange(30)), before)
    assert torch.equal(attended(torch.tensor([place for place in seen.tolist() if place != 7])), before)


def test_positions():
    codes, width = FixedPointPositions(200, 10000.0), 200
    for first in (0, 1_000_000):
        places = torch.arange(first, first + 50, dtype=torch.float64)[:, None]
        angles = places / 10000.0 ** (torch.arange(width // 2, dtype=torch.float64) / (width // 2 - 1))
        expected = torch.cat([angles.cos(), angles.sin()], dim=-1)
        torch.testing.assert_close(codes(first, 50), expected, rtol=0, atol=1e-9)
    assert torch.equal(codes(2**40, 3), torch.cat([codes(2**40 + place, 1) for place in range(3)]))


@pytest.mark.parametrize("bits", [11, 24, 32])
def test_cumulative_ranges(bits):
    logits = 10 * normal(7, 500)
    ranges = cumulative_ranges(logits, bits)
    widths = ranges.diff(dim=-1, prepend=torch.zeros(7, 1, dtype=torch.int64))
    assert (widths >= 2).all() and (ranges[:, -1] <= 2**bits).all()
    assert (2**bits - ranges[:, -1] <= 500).all()
    torch.testing.assert_close(widths / 2**bits, logits.softmax(dim=-1).float(), rtol=1e-3, atol=1002 / 2**bits)
    with pytest.raises(ValueError, match="got 9"):
        cumulative_ranges(logits, 9)
    with pytest.raises(ValueError, match="got 33"):
        cumulative_ranges(logits, 33)
