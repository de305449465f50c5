"""Spectral distances: equal to a plain transcription, defined row by row, calm in silence, differentiable."""

from __future__ import annotations

import math

import numpy
import pytest
import torch
from testing_utils import assert_error

from melreformer_hf.audio.mel import MelConfig, log_mel_spectrogram
from melreformer_hf.metrics import log_mel_l1, multi_resolution_stft_distance

MEL = MelConfig(power=1.0, log_floor=1e-8)


def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 6000, generator=generator) * 0.1, torch.randn(2, 6000, generator=generator) * 0.2


def plain_magnitude(waveform: numpy.ndarray, size: int) -> numpy.ndarray:
    padded = numpy.pad(waveform, (size // 2, size // 2), mode="reflect")
    window = 0.5 - 0.5 * numpy.cos(2 * numpy.pi * numpy.arange(size) / size)
    starts = range(0, len(padded) - size + 1, size // 4)
    frames = numpy.stack([padded[start : start + size] * window for start in starts])
    return numpy.maximum(numpy.abs(numpy.fft.rfft(frames)), 1e-5)


def plain_distance(prediction: torch.Tensor, target: torch.Tensor, windows: tuple[int, ...]) -> float:
    values = []
    for ours, theirs in zip(prediction.numpy(), target.numpy(), strict=True):
        for size in windows:
            made, real = plain_magnitude(ours, size), plain_magnitude(theirs, size)
            convergence = numpy.linalg.norm(real - made) / numpy.linalg.norm(real)
            values.append(convergence + numpy.abs(numpy.log(made) - numpy.log(real)).mean())
    return float(numpy.mean(values))


@pytest.mark.parametrize("gains", [(1.0, 1.0), (0.02, 1.0), (3.0, 0.7)])
def test_multi_resolution_distance_equals_its_formula_row_by_row(gains):
    prediction, target = (waveform * torch.tensor(gains)[:, None] for waveform in pair())
    actual = multi_resolution_stft_distance(prediction, target, (128, 1024))
    assert actual.item() == pytest.approx(plain_distance(prediction, target, (128, 1024)), rel=1e-4)
    default = multi_resolution_stft_distance(prediction, target)
    assert default.item() == pytest.approx(plain_distance(prediction, target, (128, 256, 512, 1024, 2048)), rel=1e-4)


def test_two_halves_of_a_batch_have_the_mean_of_their_distances():
    """One process with a whole batch and two with half of it each have the same loss and the same gradient."""
    prediction, target = pair()
    target[1] *= 0.01
    whole = prediction.clone().requires_grad_()
    multi_resolution_stft_distance(whole, target).backward()
    halves = prediction.clone().requires_grad_()
    losses = [multi_resolution_stft_distance(halves[row : row + 1], target[row : row + 1]) for row in (0, 1)]
    (sum(losses) / 2).backward()
    assert torch.stack(losses).mean().item() == pytest.approx(
        multi_resolution_stft_distance(prediction, target).item(), rel=1e-6
    )
    torch.testing.assert_close(whole.grad, halves.grad, rtol=1e-5, atol=1e-9)


def test_silent_targets_do_not_explode():
    prediction, target = pair()
    target[0] = 0.0
    convergence = []
    for size in (128, 1024):
        made, real = plain_magnitude(prediction[0].numpy(), size), plain_magnitude(target[0].numpy(), size)
        logarithms = numpy.abs(numpy.log(made) - numpy.log(real)).mean()
        convergence.append(numpy.linalg.norm(real - made) / (0.1 * numpy.linalg.norm(made)) + logarithms)
    other = plain_distance(prediction[1:], target[1:], (128, 1024))
    expected = (numpy.mean(convergence) + other) / 2
    actual = multi_resolution_stft_distance(prediction, target, (128, 1024)).item()
    assert actual == pytest.approx(expected, rel=1e-4) and actual < 15
    made = prediction.clone().requires_grad_()
    multi_resolution_stft_distance(made[:1], target[:1]).backward()
    assert (made.grad[0] * prediction[0]).sum() > 0  # less sound is better


def test_log_mel_l1_of_a_gain_is_its_logarithm():
    _, target = pair()
    assert log_mel_l1(target * 3, target, MEL).item() == pytest.approx(math.log(3), rel=1e-4)
    assert log_mel_l1(target / 3, log_mel_spectrogram(target, MEL), MEL).item() == pytest.approx(math.log(3), rel=1e-4)
    ten = MelConfig.preset("melgan", log_floor=1e-8)
    assert log_mel_l1(target * 10, target, ten).item() == pytest.approx(1.0, rel=1e-4)
    mels = torch.tensor([[[1.0, 5.0]], [[2.0, 2.0]]])
    assert log_mel_l1(mels, torch.tensor([[[0.0, 2.0]], [[2.0, 6.0]]])).item() == (1 + 3 + 0 + 4) / 4


def test_equal_waveforms_have_no_distance():
    _, target = pair()
    assert multi_resolution_stft_distance(target, target) == 0
    assert log_mel_l1(target, target, MEL) == 0


@pytest.mark.parametrize("silent", ["prediction", "target"])
def test_gradients_are_finite_even_in_silence(silent):
    prediction, target = pair()
    if silent == "prediction":
        prediction = torch.zeros_like(prediction)
    else:
        target = target * 1e-6
    prediction.requires_grad_()
    config = MelConfig.preset("hifigan")
    loss = multi_resolution_stft_distance(prediction, target) + log_mel_l1(prediction, target, config)
    loss.backward()
    assert loss.isfinite() and prediction.grad.isfinite().all()


def test_a_window_first_used_in_inference_mode_serves_a_later_training():
    prediction, target = pair()
    with torch.inference_mode():
        multi_resolution_stft_distance(prediction, target, (192,))
    prediction.requires_grad_()
    multi_resolution_stft_distance(prediction, target, (192,)).backward()


def test_errors():
    prediction, target = pair()
    with pytest.raises(ValueError) as error:
        multi_resolution_stft_distance(prediction, target[:, :-1])
    assert_error(error, "(2, 6000)", "(2, 5999)")
    with pytest.raises(ValueError, match="windows"):
        multi_resolution_stft_distance(prediction, target, ())
    with pytest.raises(ValueError, match="MelConfig as config.*None"):
        log_mel_l1(prediction, target)
    with pytest.raises(ValueError, match="one shape"):
        log_mel_l1(torch.zeros(1, 4, 5), torch.zeros(1, 4, 6))
