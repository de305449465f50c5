"""Changes of ideas before a discriminator judges them: what each does, that gradients pass, and that a share is left alone."""

from __future__ import annotations

import math

import pytest
import torch

from melreformer_hf.training.idea_augmentation import IdeaAugmentation

NOTHING = {"share": 1.0, "gain": 0.0, "stretch": 1.0, "shift": 0.0, "drop": 0.0}


def changed(pictures: torch.Tensor, lengths: torch.Tensor | None = None, seed: int = 0, **values):
    torch.manual_seed(seed)
    return IdeaAugmentation(**{**NOTHING, **values})(pictures, lengths)


def ramp(batch: int = 4, bands: int = 8, columns: int = 65) -> torch.Tensor:
    return torch.linspace(-1, 1, columns).expand(batch, 1, bands, columns).clone()


def test_nothing_is_changed_by_nothing():
    pictures, lengths = torch.randn(3, 1, 8, 16), torch.arange(3.0)
    same, durations = changed(pictures, lengths)
    torch.testing.assert_close(same, pictures)
    assert torch.equal(durations, lengths)
    assert changed(pictures, None, share=0.0, gain=9.0)[0] is pictures and changed(pictures)[1] is None


def test_gain_is_one_number_per_idea_within_bounds():
    pictures = torch.randn(200, 1, 4, 8)
    gains = (changed(pictures, gain=0.5)[0] - pictures).flatten(1)
    torch.testing.assert_close(gains, gains[:, :1].expand_as(gains), rtol=0, atol=1e-5)
    assert gains.abs().max() <= 0.5 + 1e-5 and gains[:, 0].std() > 0.25
    some = (changed(pictures, gain=0.5, share=0.3)[0] - pictures).flatten(1)[:, 0]
    assert 0.2 < (some.abs() > 1e-5).float().mean() < 0.4


def test_stretched_ideas_have_another_pace_and_duration():
    pictures, lengths = ramp(), torch.full((4,), 10.0)
    slower, durations = changed(pictures, lengths, stretch=2.0)
    for row in range(4):
        pace = (slower[row, 0, 0, 33] - slower[row, 0, 0, 31]) / (pictures[row, 0, 0, 33] - pictures[row, 0, 0, 31])
        if (durations[row] - 10).abs() > 0.1 and durations[row] < 10:
            # Half the pace: the picture holds half of the music.
            assert pace.item() == pytest.approx(2 ** (durations[row].item() - 10), rel=0.02)
    assert (durations - 10).abs().max() <= 1.0 and (durations < 10).any()


def test_shifted_ideas_mirror_what_comes_in():
    pictures = ramp()
    moved, _ = changed(pictures, shift=0.25)
    inner = moved[:, 0, 0, 32]
    assert (inner.abs() <= 0.5 + 1e-5).all() and inner.std() > 0.05
    assert moved.abs().max() <= 1.0 + 1e-5
    torch.testing.assert_close(moved[:, :, :1].expand_as(moved), moved)


def test_dropped_bands_lie_side_by_side_and_become_the_mean():
    pictures = torch.randn(60, 1, 40, 6)
    without, _ = changed(pictures, drop=0.25)
    for before, after in zip(pictures[:, 0], without[:, 0], strict=True):
        gone = (before - after).abs().amax(1) > 1e-3
        assert gone.sum() <= 11
        if gone.any():
            places = gone.nonzero()[:, 0]
            assert places.max() - places.min() + 1 == gone.sum()
            assert after[gone] == pytest.approx(before.mean().item(), abs=1e-5)


def test_gradients_reach_pictures_and_durations():
    pictures, lengths = torch.randn(4, 1, 8, 16, requires_grad=True), torch.ones(4, requires_grad=True)
    torch.manual_seed(0)
    made, durations = IdeaAugmentation(share=1.0)(pictures, lengths)
    (made.square().sum() + durations.square().sum()).backward()
    assert pictures.grad.abs().amax((1, 2, 3)).min() > 0 and lengths.grad.abs().min() > 0


@pytest.mark.parametrize(
    "wrong", [{"share": 1.1}, {"gain": -0.1}, {"stretch": 0.9}, {"shift": 2.0}, {"drop": -1.0}, {"gain": math.nan}]
)
def test_refusals(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        IdeaAugmentation(**wrong)
