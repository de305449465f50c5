"""The codec's distance of mel spectrograms over several windows against a plain computation."""

from __future__ import annotations

import numpy
import pytest
import torch
from transformers.audio_utils import mel_filter_bank

from melreformer_hf.metrics import si_sdr
from melreformer_hf.training.losses.codec import (
    DEFAULT_MEL_WINDOWS,
    channel_average_loss,
    multi_window_mel_distance,
    si_sdr_loss,
    spectrogram_distance,
    window_weights,
)

RATE = 16000


def plain_mel(waveform: numpy.ndarray, size: int) -> numpy.ndarray:
    """Power in 64 Slaney bands, hop a quarter of the window, divided by the window's energy; (band, frame)."""
    length, hop = max(size, 512), size // 4
    window = numpy.zeros(length)
    start = (length - size) // 2
    window[start : start + size] = 0.5 - 0.5 * numpy.cos(2 * numpy.pi * numpy.arange(size) / size)
    before = (length - hop) // 2
    padded = numpy.pad(waveform, (before, length - hop - before), mode="reflect")
    frames = numpy.stack([padded[at : at + length] * window for at in range(0, len(padded) - length + 1, hop)])
    power = numpy.abs(numpy.fft.rfft(frames)) ** 2 / (window**2).sum()
    bank = mel_filter_bank(length // 2 + 1, 64, 0.0, RATE / 2, RATE, norm="slaney", mel_scale="slaney")
    return (power @ bank).T


def plain_distance(prediction: torch.Tensor, target: torch.Tensor, windows: tuple[int, ...]) -> float:
    total = 0.0
    for size in windows:
        made, real = (
            numpy.stack([plain_mel(row, size) for row in waveform.double().numpy()])
            for waveform in (prediction, target)
        )
        logarithms = (numpy.log(made + 1e-8) - numpy.log(real + 1e-8)) ** 2
        total += numpy.abs(made - real).mean() + numpy.sqrt(size / 2) * logarithms.mean()
    return float(total)


@pytest.mark.parametrize("windows", [(64,), (512,), (64, 512, 2048)])
def test_multi_window_distance_equals_its_formula(windows):
    generator = torch.Generator().manual_seed(0)
    prediction, target = (torch.randn(2, 6144, generator=generator) * level for level in (0.1, 0.4))
    actual = multi_window_mel_distance(prediction, target, RATE, windows).item()
    assert actual == pytest.approx(plain_distance(prediction, target, windows), rel=1e-4)


def test_the_windows_and_their_weights():
    assert DEFAULT_MEL_WINDOWS == (64, 128, 256, 512, 1024, 2048)
    assert window_weights((8, 2048)) == [2.0, 32.0]


def test_spectrogram_distance_of_numbers_worked_out_by_hand():
    made, real = torch.tensor([[3.0, 0.0]]), torch.tensor([[1.0, 1.0]])
    squares = spectrogram_distance([made, made], [real, real], [2.0, 4.0], logarithmic=False).item()
    assert squares == pytest.approx(2 * (2 + 1) / 2 + (2 + 4) * (4 + 1) / 2)
    exponentials = torch.tensor([[1.0, numpy.e]]), torch.tensor([[1.0, 1.0]])
    logarithms = spectrogram_distance([exponentials[0]], [exponentials[1]], [3.0]).item()
    assert logarithms == pytest.approx((numpy.e - 1) / 2 + 3 / 2, rel=1e-5)


def test_channel_averages_of_numbers_worked_out_by_hand():
    waveform = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]])
    coarse = torch.tensor([[[1.0, 1.0], [3.0, 3.0]]])  # average 2, 2 beside every second sample, 1, 3
    loss = channel_average_loss([coarse, waveform + 2], waveform, [0.5, 3.0])
    assert loss.item() == pytest.approx(0.5 * 1.0 + 3.0 * 4.0)


def test_the_ratio_is_the_metric_s_where_there_is_sound_and_finite_where_there_is_none():
    generator = torch.Generator().manual_seed(0)
    target, noise = (torch.randn(3, 4000, generator=generator) for _ in range(2))
    prediction = 0.5 * target + 0.1 * noise
    expected = torch.stack([si_sdr(one[None], two[None]).mean() for one, two in zip(prediction, target, strict=True)])
    centered = [value - value.mean(1, keepdim=True) for value in (prediction, target)]
    torch.testing.assert_close(si_sdr_loss(*centered), -expected.mean(), rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(
        si_sdr_loss(7 * prediction, target), si_sdr_loss(prediction, target), rtol=1e-3, atol=1e-2
    )
    silent = torch.zeros(1, 4000)
    for made, true in ((silent, silent), (silent, target[:1]), (target[:1], silent)):
        made = made.clone().requires_grad_()
        loss = si_sdr_loss(made, true)
        loss.backward()
        assert loss.isfinite() and made.grad.isfinite().all()
