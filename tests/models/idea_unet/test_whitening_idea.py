"""Whitened ideas: the map, its inverse, and what white noise becomes."""

from __future__ import annotations

import math

import pytest
import torch

from melreformer_hf.models.idea_unet.whitening_idea import IdeaWhitening, cosine_basis, smoothed

BINS, COLUMNS = 8, 32


def textures(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Ideas whose loudness, slopes over the bands and pace have known spreads, and places of their durations."""
    generator = torch.Generator().manual_seed(seed)
    place = torch.randint(3, (count,), generator=generator) / 2  # those of the knots
    loudness = 3.0 * torch.randn(count, 1, 1, generator=generator)
    slope = torch.linspace(-1, 1, BINS)[:, None] * torch.randn(count, 1, 1, generator=generator)
    grain = (0.2 + 0.8 * place[:, None, None]) * torch.randn(count, BINS, COLUMNS, generator=generator)
    return loudness + slope + grain - 5.0 + place[:, None, None], place


def fitted(count: int = 4000) -> IdeaWhitening:
    whitening = IdeaWhitening(BINS, COLUMNS, 3)
    whitening.fit(*textures(count))
    return whitening


def test_the_cosine_transform_is_orthonormal_and_smoothing_keeps_the_lowest():
    basis = cosine_basis(COLUMNS)
    torch.testing.assert_close(basis @ basis.T, torch.eye(COLUMNS), rtol=0, atol=1e-5)
    torch.testing.assert_close(basis[0], torch.full((COLUMNS,), COLUMNS**-0.5))
    power = torch.arange(32.0)[None]
    assert smoothed(power)[0, :8].tolist() == list(range(8))
    assert smoothed(power)[0, 16] == pytest.approx(16) and smoothed(power)[0, 31] == pytest.approx((28 + 31) / 2)


def test_the_inverse_is_exact_at_every_duration():
    whitening, (ideas, place) = fitted(), textures(40, seed=1)
    place[0] = math.nan
    sample = whitening.whiten(ideas, place)
    torch.testing.assert_close(whitening.color(sample, place), ideas, rtol=1e-4, atol=1e-4)
    middle = whitening.whiten(ideas[:1], torch.tensor([0.5]))
    torch.testing.assert_close(sample[:1], middle)


def test_whitened_ideas_have_unit_variance_and_do_not_go_together():
    sample = fitted().whiten(*textures(2000, seed=2))
    assert sample.mean().abs() < 0.02 and sample.var() == pytest.approx(1.0, abs=0.06)
    # Loudness moves all cells of an idea; whitened, their mean is as likely as that of noise.
    assert sample.mean((1, 2)).std() < 2 / math.sqrt(BINS * COLUMNS)
    cells = sample[:, :, ::8].flatten(1)
    correlation = torch.corrcoef(cells.T) - torch.eye(cells.shape[1])
    assert correlation.abs().max() < 0.15


def test_noise_becomes_an_idea_with_the_loudness_and_grain_of_its_duration():
    whitening, count = fitted(), 2000
    noise = torch.randn(count, BINS, COLUMNS, generator=torch.Generator().manual_seed(3))
    for place, grain in ((0.0, 0.2), (1.0, 1.0)):
        made = whitening.color(noise, torch.full((count,), place))
        assert made.mean() == pytest.approx(-5.0 + place, abs=0.2)
        assert made.mean((1, 2)).std() == pytest.approx(3.0, rel=0.1)
        assert made.diff(dim=-1).std() == pytest.approx(grain * math.sqrt(2), rel=0.2)


def test_errors_are_weighed_by_the_gains_with_mean_square_one():
    whitening, place = fitted(), torch.tensor([0.2, 0.9])
    error = torch.randn(2, BINS, COLUMNS, generator=torch.Generator().manual_seed(4))
    assert whitening.weigh_error(error, place, 0.0).square().mean() == pytest.approx(error.square().mean().item())
    gain = torch.stack([whitening._tables(place[row : row + 1])[1][0] for row in range(2)])
    expected = error @ cosine_basis(COLUMNS).T * gain
    expected = expected / gain.square().mean((1, 2), keepdim=True).sqrt()
    torch.testing.assert_close(whitening.weigh_error(error, place, 1.0), expected)


def test_tables_travel_with_the_weights_and_the_transform_does_not():
    assert set(IdeaWhitening(BINS, COLUMNS, 3).state_dict()) == {"basis", "mean", "gain"}
