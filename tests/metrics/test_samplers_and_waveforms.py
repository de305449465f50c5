"""CRPS, SDR and SI-SDR against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from melreformer_hf.metrics import chunk_median_sdr, crps, log_mel_l1, sdr, si_sdr


def test_crps_equals_its_formula():
    draws = torch.tensor([[0.0, 5.0], [1.0, 5.0], [4.0, 8.0]])
    # First number, target 2: (2 + 1 + 2) / 3 - 2 (1 + 4 + 3) / (2 * 3 * 2); second, target 5: 3 / 3 - 2 (0 + 3 + 3) / 12.
    assert crps(draws[:, 0], torch.tensor(2.0)).item() == pytest.approx(5 / 3 - 16 / 12)
    assert crps(draws[:, 1], torch.tensor(5.0)).item() == pytest.approx(1 - 1)
    both = crps(draws, torch.tensor([2.0, 5.0])).item()
    assert both == pytest.approx((5 / 3 - 16 / 12 + 0) / 2)
    assert crps(draws.flip(0), torch.tensor([2.0, 5.0])).item() == pytest.approx(both)


def test_crps_of_many_draws_agrees_with_all_pairs():
    generator = torch.Generator().manual_seed(0)
    draws, target = torch.randn(7, 3, 5, generator=generator), torch.randn(3, 5, generator=generator)
    pairs = (draws[:, None] - draws[None]).abs().sum((0, 1))
    expected = (draws - target).abs().mean(0) - pairs / (2 * 7 * 6)
    assert crps(draws, target).item() == pytest.approx(expected.mean().item(), rel=1e-5)


def test_one_deterministic_draw_has_its_l1_distance():
    mels = torch.randn(2, 2, 8, 9, generator=torch.Generator().manual_seed(0))
    assert crps(mels[:1], mels[1]).item() == pytest.approx(log_mel_l1(mels[0], mels[1]).item(), rel=1e-6)
    copies = mels[:1].expand(4, -1, -1, -1)
    assert crps(copies, mels[1]).item() == pytest.approx(log_mel_l1(mels[0], mels[1]).item(), rel=1e-5)


def test_a_calibrated_sampler_beats_every_constant():
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(4000, generator=generator)
    sampler = crps(torch.randn(8, 4000, generator=generator), target).item()
    # Of a Gaussian: 1 / sqrt(pi) for the sampler, sqrt(2 / pi) for its middle.
    assert sampler == pytest.approx(1 / math.sqrt(math.pi), rel=0.05)
    assert crps(torch.zeros(1, 4000), target).item() == pytest.approx(math.sqrt(2 / math.pi), rel=0.05)


def test_crps_is_differentiable():
    draws = torch.randn(3, 4, requires_grad=True)
    crps(draws, torch.zeros(4)).backward()
    assert draws.grad.isfinite().all() and draws.grad.abs().sum() > 0


def test_si_sdr_equals_its_formula():
    target = torch.tensor([3.0, 0.0, 4.0])
    prediction = torch.tensor([3.0, 5.0, 4.0])  # the error is orthogonal and as large as the target: 0 dB
    assert si_sdr(prediction, target).item() == pytest.approx(0.0, abs=1e-5)
    assert si_sdr(7 * prediction, target).item() == pytest.approx(0.0, abs=1e-5)
    smaller = torch.tensor([3.0, 0.5, 4.0])
    assert si_sdr(smaller, target).item() == pytest.approx(20.0, abs=1e-4)
    # a = (2 * 3 + 4) / 25 = 0.4; |a s|^2 = 4; error (1.2 - 2, 0, 1.6 - 1): 0.64 + 0.36.
    assert si_sdr(torch.tensor([2.0, 0.0, 1.0]), target).item() == pytest.approx(10 * math.log10(4), rel=1e-5)
    rows = si_sdr(torch.stack([prediction, smaller])[:, None], target.expand(2, 1, 3))
    assert rows.shape == (2, 1) and rows.flatten().tolist() == pytest.approx([0.0, 20.0], abs=1e-4)


def test_si_sdr_of_silence_and_of_multiples():
    target = torch.tensor([1.0, 2.0])
    assert si_sdr(2 * target, target).item() == math.inf
    assert math.isnan(si_sdr(target, torch.zeros(2)).item())


def test_errors():
    with pytest.raises(ValueError, match=r"same shape.*\(2,\).*\(3,\)"):
        si_sdr(torch.zeros(2), torch.zeros(3))
    with pytest.raises(ValueError, match=r"draws must be.*\(4,\)"):
        crps(torch.zeros(4), torch.zeros(4))
    with pytest.raises(ValueError, match="at least one draw"):
        crps(torch.zeros(0, 4), torch.zeros(4))


def test_sdr_counts_gains_as_errors_and_has_no_value_for_silence():
    target = torch.tensor([[3.0, -4.0, 0.0], [0.0, 0.0, 0.0]])
    made = sdr(0.9 * target + 0.1 * torch.tensor([0.0, 0.0, 5.0]), target)
    # |s|^2 = 25; the error is a tenth of s and 0.5 besides.
    assert made[0].item() == pytest.approx(10 * math.log10(25 / (0.25 + 0.25))) and made[1].isnan()
    assert sdr(target[0], target[0]).item() == math.inf
    with pytest.raises(ValueError, match="same shape"):
        sdr(target[:, :2], target)


def test_the_median_of_chunks_leaves_silent_ones_out():
    target = torch.tensor([1.0, 1.0, 0.0, 0.0, 2.0, 0.0, 1.0, 0.0, 9.0])
    error = torch.tensor([0.1, 0.1, 5.0, 0.0, 0.02, 0.0, 1.0, 0.0, 9.0])
    # Chunks of two: 20 dB, silent, 40 dB, 0 dB; the last sample is no chunk.
    assert chunk_median_sdr(target + error, target, 2).item() == pytest.approx(20.0, abs=1e-4)
    assert chunk_median_sdr(torch.ones(4), torch.zeros(4), 2).isnan()
    assert chunk_median_sdr(target + error, target, 100).item() == pytest.approx(sdr(target + error, target).item())
    assert chunk_median_sdr((target + error)[None], target[None], 2).shape == (1,)
    with pytest.raises(ValueError, match="chunk must be at least 1 sample, got 0"):
        chunk_median_sdr(target, target, 0)
