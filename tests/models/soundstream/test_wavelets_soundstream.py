"""Orthogonal wavelets: their defining properties, and published values."""

from __future__ import annotations

import math

import pytest
import torch

from melreformer_hf.models.soundstream.wavelets_soundstream import daubechies_filters, symlet_filters, wavelet_filters


@pytest.mark.parametrize("name", ["haar", *(f"db{n}" for n in range(1, 21)), *(f"sym{n}" for n in range(2, 9))])
def test_filters_are_orthogonal_and_have_their_moments(name):
    low, high = (taps.double() for taps in wavelet_filters(name))
    order = low.numel() // 2
    assert name == "haar" or order == int(name.lstrip("dbsym"))
    assert low.sum().item() == pytest.approx(math.sqrt(2), abs=1e-5)
    for shift in range(order):
        expected = 1.0 if shift == 0 else 0.0
        for one, two, value in ((low, low, expected), (high, high, expected), (low, high, 0.0)):
            product = (one[2 * shift :] * two[: two.numel() - 2 * shift]).sum()
            assert product.item() == pytest.approx(value, abs=1e-5)
    time = torch.linspace(-1, 1, 2 * order, dtype=torch.float64)
    for moment in range(min(order, 4)):
        assert (high * time**moment).sum().item() == pytest.approx(0.0, abs=1e-5)


def test_daubechies_own_filter():
    root = math.sqrt(3)
    expected = torch.tensor([1 + root, 3 + root, 3 - root, 1 - root]) / (4 * math.sqrt(2))
    torch.testing.assert_close(daubechies_filters(2)[0], expected)
    torch.testing.assert_close(symlet_filters(2)[0], expected)


@pytest.mark.parametrize(
    ("order", "first", "last"),
    [
        (4, 0.0322231006, -0.0757657148),
        (5, 0.0195388827, 0.0273330683),
        (6, -0.0078007083, 0.0154041093),
        (7, 0.0102681767, 0.0026818146),
        (8, 0.0018899503, -0.0033824160),
    ],
)
def test_symlets_are_the_published_ones(order, first, last):
    low, _ = symlet_filters(order)
    assert low[0].item() == pytest.approx(first, abs=1e-7) and low[-1].item() == pytest.approx(last, abs=1e-7)


@pytest.mark.parametrize("wavelet", ["db21", "sym1", "db", "mexh", ([1.0, 2.0], [1.0]), ([1.0],)], ids=str)
def test_unknown_wavelets_are_refused(wavelet):
    with pytest.raises(ValueError, match="wavelet must be"):
        wavelet_filters(wavelet)
