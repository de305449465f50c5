"""Filtered resampling equals its definition, twice differentiable, in any precision; equalised layers."""

from __future__ import annotations

import pytest
import torch

from melreformer_hf.nn.equalized import EqualizedConv2d, EqualizedLinear, scaled_leaky_relu
from melreformer_hf.nn.resample2d import (
    FirFilter2d,
    filter_after_transposed,
    filter_before_strided,
    fir_kernel,
    upfirdn2d,
    upsampling_filter,
)


def by_definition(hidden, kernel, up, down, padding):
    """Zeros after every element, padding, every product written out, every n-th kept."""
    batch, channels, rows, columns = hidden.shape
    stuffed = hidden.new_zeros(batch, channels, rows * up, columns * up)
    stuffed[..., ::up, ::up] = hidden
    before, after = padding
    wide = hidden.new_zeros(batch, channels, rows * up + before + after, columns * up + before + after)
    kept = stuffed[..., max(0, -before) : rows * up + min(0, after), max(0, -before) : columns * up + min(0, after)]
    first = max(0, before)
    wide[..., first : first + kept.shape[-2], first : first + kept.shape[-1]] = kept
    size = kernel.shape[0]
    out = hidden.new_zeros(batch, channels, wide.shape[-2] - size + 1, wide.shape[-1] - size + 1)
    for row in range(size):
        for column in range(size):
            taken = wide[..., row : row + out.shape[-2], column : column + out.shape[-1]]
            out += kernel[size - 1 - row, size - 1 - column] * taken
    return out[..., ::down, ::down]


CASES = [
    (1, 1, (2, 1)),
    (2, 1, (2, 1)),
    (1, 2, (1, 1)),
    (2, 3, (3, 0)),
    (3, 1, (-1, 2)),
    (2, 1, (5, 6)),
    (1, 1, (-2, -1)),
]


@pytest.mark.parametrize(("up", "down", "padding"), CASES)
def test_equals_the_definition(up, down, padding):
    hidden = torch.randn(2, 3, 7, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kernel = torch.randn(4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = by_definition(hidden, kernel, up, down, padding)
    torch.testing.assert_close(upfirdn2d(hidden, kernel, up, down, padding), expected)


@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2)])
def test_gradients_of_gradients(up, down):
    hidden = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    kernel = fir_kernel((1, 3, 3, 1)).double()

    def energy(values):
        return upfirdn2d(values, kernel, up, down, (2, 1)).pow(3)

    assert torch.autograd.gradcheck(energy, hidden)
    assert torch.autograd.gradgradcheck(energy, hidden)


@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_is_filtered_in_float32(autocast):
    hidden = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    taps = FirFilter2d((1, 5, 7, 2), padding=(2, 1))  # no tap is exact in half precision
    kernel = taps.kernel
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        made = upfirdn2d(hidden if autocast else hidden.bfloat16(), kernel, padding=(2, 1))
    exact = upfirdn2d(hidden if autocast else hidden.bfloat16().float(), kernel, padding=(2, 1))
    assert made.dtype == (torch.float32 if autocast else torch.bfloat16)
    torch.testing.assert_close(made, exact.to(made.dtype), rtol=0, atol=0)


@pytest.mark.parametrize("taps", [(1, 3, 3, 1), (1, 2, 1), (1, 1), (1, 4, 6, 4, 1)])
def test_filters_of_the_networks_keep_sizes_and_brightness(taps):
    ones = torch.ones(1, 2, 12, 20)
    larger = upsampling_filter(taps)(ones)
    assert larger.shape == (1, 2, 24, 40)
    torch.testing.assert_close(larger[..., 6:-6, 6:-6], torch.ones(1, 2, 12, 28))
    transposed = torch.nn.functional.conv_transpose2d(ones, torch.ones(2, 2, 3, 3), stride=2)
    assert filter_after_transposed(taps, 3)(transposed).shape == (1, 2, 24, 40)
    for size in (1, 3):
        smoothed = filter_before_strided(taps, size)(ones)
        smaller = torch.nn.functional.conv2d(smoothed, torch.ones(2, 2, size, size), stride=2)
        assert smaller.shape == (1, 2, 6, 10)
        middle = smaller[..., 2:-2, 2:-2]
        torch.testing.assert_close(middle, torch.full_like(middle, 2.0 * size**2))


def test_kernels():
    kernel = fir_kernel((1, 3, 3, 1), gain=4.0)
    assert kernel.sum().item() == pytest.approx(4.0)
    for taps in ((), (1, -1)):
        with pytest.raises(ValueError, match="taps"):
            fir_kernel(taps)


def test_equalised_layers_keep_variance_and_slow_down():
    torch.manual_seed(0)
    hidden = torch.randn(4000, 64)
    for multiplier in (1.0, 0.01):
        layer = EqualizedLinear(64, 48, rate_multiplier=multiplier)
        assert layer(hidden).std().item() == pytest.approx(1.0, abs=0.05)
        assert layer.weight.std().item() == pytest.approx(1.0 / multiplier, rel=0.1)
    assert EqualizedLinear(64, 48, bias_value=1.0)(hidden).mean().item() == pytest.approx(1.0, abs=0.1)
    pictures = torch.randn(8, 16, 20, 20)
    assert EqualizedConv2d(16, 24, 3)(pictures).std().item() == pytest.approx(1.0, abs=0.1)
    assert scaled_leaky_relu(hidden).square().mean().item() == pytest.approx(1.0, abs=0.06)
