"""Spectral distances: zero for equals, equal to a plain transcription, differentiable."""

from __future__ import annotations

import numpy
import pytest
import torch
from testing_utils import assert_error

from melreformer_hf.audio.mel import MelConfig, log_mel_spectrogram
from melreformer_hf.training.losses.spectral import mel_l1_distance, multi_resolution_stft_distance


def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 6000, generator=generator) * 0.1, torch.randn(2, 6000, generator=generator) * 0.2


def plain_magnitude(waveform: numpy.ndarray, size: int) -> numpy.ndarray:
    padded = numpy.pad(waveform, ((0, 0), (size // 2, size // 2)), mode="reflect")
    window = 0.5 - 0.5 * numpy.cos(2 * numpy.pi * numpy.arange(size) / size)
    starts = range(0, padded.shape[1] - size + 1, size // 4)
    frames = numpy.stack([padded[:, start : start + size] * window for start in starts], axis=1)
    return numpy.maximum(numpy.abs(numpy.fft.rfft(frames)), 1e-5)


def test_multi_resolution_distance_equals_its_formula():
    prediction, target = pair()
    expected = 0.0
    for size in (128, 1024):
        ours, theirs = plain_magnitude(prediction.numpy(), size), plain_magnitude(target.numpy(), size)
        convergence = numpy.linalg.norm(theirs - ours) / numpy.linalg.norm(theirs)
        expected += (convergence + numpy.abs(numpy.log(ours) - numpy.log(theirs)).mean()) / 2
    actual = multi_resolution_stft_distance(prediction, target, (128, 1024))
    assert actual.item() == pytest.approx(expected, rel=1e-4)


def test_equal_waveforms_have_no_distance():
    _, target = pair()
    config = MelConfig.preset("hifigan")
    assert multi_resolution_stft_distance(target, target) == 0
    assert mel_l1_distance(target, target, config) == 0
    gain = mel_l1_distance(target * 2, target, MelConfig(power=1.0, log_floor=1e-8))
    assert gain.item() == pytest.approx(numpy.log(2), rel=1e-4)
    assert mel_l1_distance(target * 2, log_mel_spectrogram(target, config), config) > 0.5


@pytest.mark.parametrize("silent", ["prediction", "target"])
def test_gradients_are_finite_even_in_silence(silent):
    prediction, target = pair()
    if silent == "prediction":
        prediction = torch.zeros_like(prediction)
    else:
        target = target * 1e-6
    prediction.requires_grad_()
    config = MelConfig.preset("hifigan")
    loss = multi_resolution_stft_distance(prediction, target) + mel_l1_distance(prediction, target, config)
    loss.backward()
    assert loss.isfinite() and prediction.grad.isfinite().all()


def test_errors():
    prediction, target = pair()
    with pytest.raises(ValueError) as error:
        multi_resolution_stft_distance(prediction, target[:, :-1])
    assert_error(error, "(2, 6000)", "(2, 5999)")
    with pytest.raises(ValueError, match="windows"):
        multi_resolution_stft_distance(prediction, target, ())
