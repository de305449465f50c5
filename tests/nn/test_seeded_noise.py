"""Noise is a function of seed and place: any stretch of it is the same, whoever asks."""

from __future__ import annotations

import pytest
import torch

from melreformer_hf.nn.seeded_noise import row_seeds, seeded_noise

SEEDS = torch.tensor([5, 2**61 + 3])


@pytest.mark.parametrize(("first", "count"), [(0, 1), (3, 10), (60, 8), (63, 1), (64, 64), (100, 200)])
def test_stretches_are_those_of_the_whole(first, count):
    whole = seeded_noise(SEEDS, 0, 320, 3)
    assert torch.equal(seeded_noise(SEEDS, first, count, 3), whole[..., first : first + count])
    assert torch.equal(seeded_noise(SEEDS[1:], first, count, 3), whole[1:, :, first : first + count])


def test_there_is_no_noise_before_the_first_place():
    noise = seeded_noise(SEEDS, -5, 8, 2)
    assert (noise[..., :5] == 0).all() and torch.equal(noise[..., 5:], seeded_noise(SEEDS, 0, 3, 2))
    assert (seeded_noise(SEEDS, -9, 9, 2) == 0).all()


def test_seeds_streams_and_places_are_independent():
    noise = seeded_noise(torch.arange(40), 0, 640, 4)
    assert noise.mean().abs() < 0.01 and abs(noise.std() - 1) < 0.01
    blocks = torch.cat([noise.unflatten(2, (10, 64)).movedim(2, 1).flatten(0, 1), seeded_noise(SEEDS, 0, 64, 4, 1)])
    between = torch.corrcoef(blocks.flatten(1)) - torch.eye(len(blocks))
    assert between.abs().max() < 0.35  # of 256 numbers each


def test_row_seeds_follow_their_own_generators():
    def generators():
        return [torch.Generator().manual_seed(seed) for seed in (1, 2, 3)]

    together = row_seeds(generators(), 3)
    alone = torch.cat([row_seeds(generator, 1) for generator in generators()])
    assert torch.equal(together, alone) and len(set(together.tolist())) == 3
    assert row_seeds(None, 2).shape == (2,)
    with pytest.raises(ValueError, match=r"one per row \(2\), got 3"):
        row_seeds(generators(), 2)
