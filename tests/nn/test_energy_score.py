"""The energy score equals its formula, computed patch by patch, and is lowest for draws from the truth."""

from __future__ import annotations

import pytest
import torch

from melreformer_hf.nn.energy_score import energy_score, mel_distance, patch_distance

PATCHES = ((4, 2), (6, 4), (12, 2))
BINS, FRAMES = 12, 9


def plain_patches(values: torch.Tensor, inside: torch.Tensor, patches) -> float:
    """Mean over sizes of the mean root mean square of patches that begin at every half of their size."""
    rows, columns = values.shape
    means = []
    for bands, frames in patches:
        bands, frames = min(bands, rows) // 2 * 2, min(frames, columns) // 2 * 2
        roots = []
        for top in range(0, rows - bands + 1, bands // 2):
            for left in range(0, columns - frames + 1, frames // 2):
                if inside[left : left + frames].any():
                    patch = values[top : top + bands, left : left + frames] * inside[left : left + frames]
                    roots.append((patch.square().mean() + 1e-8).sqrt())
        means.append(sum(roots) / len(roots))
    return sum(means) / len(means)


def plain_distance(values: torch.Tensor, inside: torch.Tensor, patches) -> float:
    parts = [
        plain_patches(values, inside, patches),
        plain_patches(values[:, 1:] - values[:, :-1], inside[1:] * inside[:-1], patches),
        plain_patches(values[1:] - values[:-1], inside, patches),
    ]
    return sum(parts) / 3


def some_draws(batch: int = 2, count: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(batch, count, BINS, FRAMES, generator=generator)
    target = torch.randn(batch, BINS, FRAMES, generator=generator)
    inside = torch.ones(batch, 1, FRAMES)
    inside[-1, :, 6:] = 0
    return draws, target, inside


def test_score_equals_its_formula():
    draws, target, inside = some_draws()
    score = energy_score(draws, target, inside, PATCHES)
    assert score.shape == (2,)
    for row in range(2):
        told, counted = draws[row], inside[row, 0]
        near = sum(plain_distance(draw - target[row], counted, PATCHES) for draw in told) / 3
        apart = sum(
            plain_distance(told[i] - told[j], counted, PATCHES) for i in range(3) for j in range(3) if i != j
        ) / (2 * 3 * 2)
        torch.testing.assert_close(score[row], near - apart)


def test_one_draw_is_judged_by_its_distance():
    draws, target, inside = some_draws(count=1)
    score = energy_score(draws, target, inside, PATCHES)
    torch.testing.assert_close(score, mel_distance(draws[:, 0] - target, inside, PATCHES))


def test_what_is_outside_does_not_count():
    draws, target, inside = some_draws()
    changed = target.clone()
    changed[-1, :, 6:] += 5
    scores = [energy_score(draws, told, inside, PATCHES) for told in (target, changed)]
    torch.testing.assert_close(scores[0], scores[1])
    outside = torch.zeros(1, 1, FRAMES)
    assert mel_distance(torch.ones(1, BINS, FRAMES), outside, PATCHES) == 0


def test_patches_of_one_bin_are_absolute_values():
    values = torch.randn(1, BINS, FRAMES)
    distance = patch_distance(values, torch.ones(1, 1, FRAMES), ((1, 1),))
    torch.testing.assert_close(distance[0], values.abs().mean(), rtol=1e-4, atol=1e-5)


def test_patches_longer_than_the_mel_shrink_to_it():
    values, inside = torch.randn(1, 5, 3), torch.ones(1, 1, 3)
    torch.testing.assert_close(patch_distance(values, inside, ((128, 64),)), patch_distance(values, inside, ((4, 2),)))
    assert mel_distance(values[..., :1], inside[..., :1], ((8, 8),)).isfinite().all()


def test_gradients_are_finite_where_draws_are_equal():
    target, inside = torch.zeros(1, BINS, FRAMES), torch.ones(1, 1, FRAMES)
    draws = torch.zeros(1, 2, BINS, FRAMES, requires_grad=True)
    energy_score(draws, target, inside, PATCHES).sum().backward()
    assert draws.grad.isfinite().all()


@pytest.mark.parametrize("wrong", ["one value", "half the spread", "twice the spread", "shifted", "grain"])
def test_draws_from_the_truth_score_lowest(wrong):
    """Truth: noise that is the same in pairs of bins; draws of another spread, mean or without the pairs cost more."""
    generator = torch.Generator().manual_seed(1)

    def truth(*shape: int) -> torch.Tensor:
        drawn = torch.randn(*shape, BINS // 2, FRAMES, generator=generator)
        return drawn.repeat_interleave(2, dim=-2)

    cases, inside = 400, torch.ones(400, 1, FRAMES)
    target, right = truth(cases), truth(cases, 2)
    other = {
        "one value": torch.zeros_like(right),
        "half the spread": truth(cases, 2) * 0.5,
        "twice the spread": truth(cases, 2) * 2,
        "shifted": truth(cases, 2) + 0.5,
        "grain": torch.randn(right.shape, generator=generator),
    }[wrong]
    scores = [energy_score(draws, target, inside, PATCHES).mean() for draws in (right, other)]
    assert scores[0] < scores[1]
