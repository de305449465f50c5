"""Sharpness, seams and drift against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from melreformer_hf.audio.mel import MelConfig
from melreformer_hf.metrics import audible_bins, drift, mel_statistics_distance, seam, sharpness

MAGNITUDE = MelConfig()
REAL = torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 4.0]])
MADE = torch.tensor([[0.0, 1.0, 1.0], [0.0, 0.0, 1.0]])


def test_sharpness_in_time_and_frequency_is_the_energy_of_change_relative_to_the_real():
    # In time: real 4 + 4 + 0 + 16 over 4 pairs, made 1 + 0 + 0 + 1. In frequency: real 0 + 4 + 16, made 0 + 1 + 0.
    assert sharpness(MADE, REAL, audible_db=None) == pytest.approx(2 / 24)
    assert sharpness(MADE, REAL, axis="frequency", audible_db=None) == pytest.approx(1 / 20)
    assert sharpness(REAL, REAL, audible_db=None) == 1.0
    assert sharpness(3 * REAL, REAL, audible_db=None) == pytest.approx(9.0)


def test_pieces_count_by_their_mean_change():
    # Means per piece: made 2 / 4 and 0, real 24 / 4 and 9 / 2 (two pairs, one changes by 3).
    second = torch.tensor([[1.0, 4.0, 4.0]])
    pieces = sharpness([MADE, torch.zeros(1, 3)], [REAL, second], audible_db=None)
    assert pieces == pytest.approx((2 / 4) / (24 / 4 + 9 / 2))


@pytest.mark.parametrize(
    ("config", "decibel"),
    [
        (MelConfig(), math.log(10) / 20),
        (MelConfig(power=2.0), math.log(10) / 10),
        (MelConfig.preset("melgan"), 1 / 20),
        (MelConfig.preset("specvqgan"), 0.2 / 20),
    ],
)
def test_audible_is_within_sixty_decibels_of_the_peak_under_every_contract(config, decibel):
    levels = torch.tensor([[0.0, -59.9, -60.1, -20.0]]) * decibel + 1.5
    assert audible_bins(levels, config).tolist() == [[True, True, False, True]]
    assert audible_bins(levels, config, 59.0).tolist() == [[True, False, False, True]]


def test_what_cannot_be_heard_does_not_count():
    decibel = math.log(10) / 20
    loud = torch.tensor([[0.0, -10.0, 0.0], [-5.0, -5.0, -10.0]]) * decibel
    soft_real = torch.tensor([[-90.0, -70.0, -90.0]]) * decibel
    soft_made = torch.tensor([[-61.0, -120.0, -61.0]]) * decibel
    real, made = torch.cat([loud, soft_real]), torch.cat([loud * 0.5, soft_made])
    assert sharpness(made, real, MAGNITUDE) == pytest.approx(0.25)
    # In frequency: pairs of the first two bands only, real 5^2 + 5^2 + 10^2, made a quarter of it.
    assert sharpness(made, real, MAGNITUDE, axis="frequency") == pytest.approx(0.25)
    plain = sharpness(made, real, audible_db=None)
    assert plain == pytest.approx((2 * 59**2 + 0.25 * 225) / (2 * 20**2 + 225))
    assert sharpness(made, real, MAGNITUDE, audible_db=200.0) == pytest.approx(plain)


def test_a_pair_counts_where_both_bins_are_audible():
    decibel = math.log(10) / 20
    real = torch.tensor([[0.0, -10.0, -80.0, -70.0]]) * decibel
    assert sharpness(2 * real, real, MAGNITUDE) == pytest.approx(4.0)
    made = real + torch.tensor([[0.0, 5.0, 100.0, 300.0]]) * decibel
    assert sharpness(made, real, MAGNITUDE) == pytest.approx((5 / 10) ** 2)


def test_constant_targets_have_no_sharpness():
    assert math.isnan(sharpness(MADE, torch.zeros(2, 3), audible_db=None))


def test_seams_are_changes_across_borders_relative_to_those_inside():
    mel = torch.tensor([[0.0, 1.0, 4.0, 5.0, 9.0, 10.0], [0.0, 1.0, 2.0, 3.0, 6.0, 7.0]])
    # Period 2: steps 1->2 and 3->4 cross borders: (3 + 4 + 1 + 3) / 4; the others are all 1.
    assert seam(mel, 2) == pytest.approx(11 / 4)
    # Period 3: only step 2->3 does: (1 + 1) / 2; inside (1 + 3 + 4 + 1 + 1 + 1 + 3 + 1) / 8.
    assert seam(mel, 3) == pytest.approx(1 / (15 / 8))
    assert seam(mel, 2, mel) == pytest.approx(1.0)
    even = torch.arange(6.0).expand(2, 6)
    assert seam(mel, 2, even) == pytest.approx(11 / 4) and seam(even, 2, mel) == pytest.approx(4 / 11)
    assert seam([mel, mel[:, :1]], 2) == pytest.approx(11 / 4)
    assert math.isnan(seam(mel, 6)) and math.isnan(seam(torch.zeros(1, 4), 2))


def test_drift_is_the_error_of_the_end_relative_to_that_of_the_beginning():
    error = torch.tensor([[1.0, 2.0, 9.0, 9.0, 9.0, 9.0, 3.0, -6.0]])
    assert drift(error, torch.zeros(1, 8)) == pytest.approx(4.5 / 1.5)
    assert drift(error, torch.zeros(1, 8), share=0.125) == pytest.approx(6.0)
    short = torch.tensor([[1.0, 5.0]])
    assert drift([error, short], [torch.zeros(1, 8), torch.zeros(1, 2)]) == pytest.approx((4.5 + 5) / (1.5 + 1))
    assert math.isnan(drift(REAL, REAL))


def test_statistics_of_sets_of_mels():
    ideas = torch.randn(6, 4, 32, generator=torch.Generator().manual_seed(0))
    assert max(mel_statistics_distance(ideas, ideas.flip(0)).values()) < 1e-5
    louder = mel_statistics_distance(ideas + 2, ideas)
    assert louder["band_mean_distance"] == pytest.approx(2.0, rel=1e-4)
    assert louder["statistics_distance"] == pytest.approx(2 / 3, rel=1e-3)
    pair = torch.tensor([[[0.0, 1.0, 0.0, 1.0]]]), torch.tensor([[[0.0, 0.0, 3.0, 3.0]]])
    found = mel_statistics_distance(*pair)
    assert found["band_mean_distance"] == pytest.approx(1.0)
    assert found["band_std_distance"] == pytest.approx(math.sqrt(9 / 3) - math.sqrt(1 / 3))
    assert found["band_change_distance"] == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: sharpness(MADE, REAL), "config must be the MelConfig"),
        (lambda: sharpness(MADE, REAL, axis="bands", audible_db=None), "axis must be one of.*'bands'"),
        (lambda: sharpness(MADE, REAL[:, :2], audible_db=None), r"\(2, 3\).*\(2, 2\)"),
        (lambda: sharpness(torch.zeros(3), torch.zeros(3), audible_db=None), r"shape \(mel, frame\)"),
        (lambda: sharpness([], [], audible_db=None), "at least one"),
        (lambda: audible_bins(REAL, MAGNITUDE, 0.0), "range_db must be above 0, got 0.0"),
        (lambda: seam(MADE, 1), "period must be at least 2 frames, got 1"),
        (lambda: drift(MADE, REAL, 0.6), "share must be above 0 and at most 0.5, got 0.6"),
    ],
)
def test_errors(call, match):
    with pytest.raises(ValueError, match=match):
        call()
