"""Aligned transforms are exact inverses, agree with torch.stft, and Griffin-Lim recovers a mel."""

from __future__ import annotations

import numpy
import pytest
import torch
from testing_utils import assert_error

from melreformer_hf.audio.griffin_lim import griffin_lim, magnitude_from_log_mel, mel_pseudo_inverse
from melreformer_hf.audio.mel import MelConfig, log_mel_spectrogram, mel_filter_bank
from melreformer_hf.audio.stft import (
    Transform,
    extended_istft,
    extended_stft,
    istft,
    map_frames,
    overlap_add,
    power,
    stft,
)

TRANSFORMS = [Transform(1024, 256, 1024), Transform(64, 15, 64), Transform(96, 32, 80), Transform(64, 16, 33)]


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
@pytest.mark.parametrize("frames", [1, 2, 3, 4, 9, 40])
def test_inverse_is_exact_and_aligned(transform, frames):
    samples = max(frames * transform.hop_length, transform.n_fft)
    frames = samples // transform.hop_length
    waveform = noise(2, frames * transform.hop_length)
    spectrum = stft(waveform, transform)
    assert spectrum.shape == (2, frames, transform.num_bins)
    back = istft(spectrum, transform)
    assert back.shape == waveform.shape
    torch.testing.assert_close(back, waveform, rtol=0, atol=2e-5)


@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
def test_forward_agrees_with_torch(transform):
    signal = noise(2, 20 * transform.hop_length + transform.n_fft)
    window = torch.hann_window(transform.win_length)
    expected = torch.stft(
        signal,
        transform.n_fft,
        transform.hop_length,
        transform.win_length,
        window,
        center=False,
        return_complex=True,
    )
    torch.testing.assert_close(extended_stft(signal, transform).transpose(1, 2), expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
@pytest.mark.parametrize("frames", [1, 3, 30])
def test_inverse_is_the_least_squares_one(transform, frames):
    """The inverse of an inconsistent spectrum is the windowed mean of its frames, written out sample by sample."""
    spectrum = torch.complex(noise(1, frames, transform.num_bins), noise(1, frames, transform.num_bins).flip(1))
    window = transform.window(torch.float64)
    parts = torch.fft.irfft(spectrum[0], n=transform.n_fft).double()
    total = torch.zeros((frames - 1) * transform.hop_length + transform.n_fft, dtype=torch.float64)
    weight = torch.zeros_like(total)
    for index in range(frames):
        place = slice(index * transform.hop_length, index * transform.hop_length + transform.n_fft)
        total[place] += parts[index] * window
        weight[place] += window**2
    expected = total / weight.clamp(min=1e-3)
    torch.testing.assert_close(extended_istft(spectrum, transform)[0].double(), expected, rtol=0, atol=1e-5)


def test_overlap_add_has_gradients():
    frames = noise(1, 5, 12).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda values: overlap_add(values, 4), (frames,))
    assert torch.autograd.gradcheck(lambda values: overlap_add(values, 5), (frames,))


def test_pseudo_inverse_returns_the_mel():
    config = MelConfig.preset("hifigan", num_mel_bins=128, fmax=None)
    bank, inverse = mel_filter_bank(config), mel_pseudo_inverse(config)
    assert inverse.shape == (513, 128)
    mel = noise(128, 3).abs()
    torch.testing.assert_close(bank @ (inverse @ mel), mel, rtol=1e-3, atol=1e-4)
    magnitude = magnitude_from_log_mel(mel.log().unsqueeze(0), config, minimum=0.01)
    assert magnitude.shape == (1, 3, 513)
    assert magnitude.min() >= 0.01 * 0.999


@pytest.mark.parametrize("preset", ["hifigan", "melreformer", "melgan"])
def test_griffin_lim_recovers_the_mel(preset):
    config = MelConfig.preset(preset)
    waveform = noise(256 * 40) * 0.3 * torch.linspace(1, 0.05, 256 * 40)
    mel = log_mel_spectrogram(waveform.unsqueeze(0), config)
    errors = []
    for iterations in (0, 8, 64):
        rebuilt = griffin_lim(mel, config, iterations, generator=torch.Generator().manual_seed(0))
        assert rebuilt.shape == (1, waveform.numel())
        errors.append((log_mel_spectrogram(rebuilt, config) - mel).abs().mean().item())
    assert errors[2] < errors[1] < errors[0]
    again = griffin_lim(mel, config, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(again, rebuilt, rtol=0, atol=0)


def test_griffin_lim_of_silence_is_silent():
    config = MelConfig.preset("hifigan")
    mel = torch.full((1, 80, 10), config.floor_value)
    assert griffin_lim(mel, config, 4).abs().max() < 1e-3


def test_errors():
    with pytest.raises(ValueError) as error:
        stft(torch.zeros(1, 100), Transform(1024, 256, 1024))
    assert_error(error, "waveform", "384", "100")
    with pytest.raises(ValueError) as error:
        griffin_lim(torch.zeros(1, 80, 4), MelConfig.preset("hifigan"), momentum=1.0)
    assert_error(error, "momentum", "1.0")


@pytest.mark.parametrize("momentum", [0.0, 0.99])
@pytest.mark.parametrize("iterations", [0, 1, 3])
def test_griffin_lim_by_hand(momentum, iterations):
    """c = t_n - momentum / (1 + momentum) t_(n-1) with t_n the consistent spectrum; then the phases of c."""
    config = MelConfig.preset(
        "hifigan", sampling_rate=2000, n_fft=32, win_length=32, hop_length=8, num_mel_bins=10, fmax=None
    )
    transform, frames = Transform.of(config), 6
    mel = torch.randn(1, 10, frames, generator=torch.Generator().manual_seed(0)) - 2
    inverse = numpy.linalg.pinv(mel_filter_bank(config, torch.float64).numpy())
    magnitude = (inverse @ mel[0].double().exp().numpy()).T.clip(0)
    angles = torch.rand(1, frames, 17, generator=torch.Generator().manual_seed(5))[0].double().numpy()
    window = 0.5 - 0.5 * numpy.cos(2 * numpy.pi * numpy.arange(32) / 32)

    def back(spectrum: numpy.ndarray) -> numpy.ndarray:
        signal, weight = numpy.zeros((frames - 1) * 8 + 32), numpy.zeros((frames - 1) * 8 + 32)
        for frame in range(frames):
            signal[frame * 8 : frame * 8 + 32] += numpy.fft.irfft(spectrum[frame]) * window
            weight[frame * 8 : frame * 8 + 32] += window**2
        return signal / weight.clip(1e-3)

    spectrum, before = magnitude * numpy.exp(2j * numpy.pi * angles), 0
    for _ in range(iterations):
        signal = back(spectrum)
        rebuilt = numpy.stack([numpy.fft.rfft(signal[t * 8 : t * 8 + 32] * window) for t in range(frames)])
        target = rebuilt - momentum / (1 + momentum) * before
        before = rebuilt
        spectrum = magnitude * target / abs(target).clip(1e-16)
    actual = griffin_lim(mel, config, iterations, momentum, torch.Generator().manual_seed(5))
    expected = torch.from_numpy(back(spectrum)[12:-12])
    assert actual.shape == (1, frames * transform.hop_length)
    torch.testing.assert_close(actual[0].double(), expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())


def test_long_signals_go_in_blocks_and_stay_the_same():
    transform = Transform(64, 16, 64)
    signal = noise(3, 16 * 3000 + 48)
    frames = signal.unfold(-1, 64, 16) * torch.hann_window(64)
    torch.testing.assert_close(extended_stft(signal, transform), torch.fft.rfft(frames), rtol=0, atol=1e-5)
    powers = map_frames(signal, transform, power)
    torch.testing.assert_close(powers, torch.fft.rfft(frames).abs().square(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("transform", [*TRANSFORMS, Transform(64, 64, 64), Transform(64, 16, 20)], ids=str)
def test_reaches_by_their_definitions(transform):
    """Which frames' windows cover a sample of a frame's own hop; which windows share a sample."""
    n_fft, hop, size = transform.n_fft, transform.hop_length, transform.win_length
    # The frame t lies at t * hop - padding, and its window in its middle.
    start = (n_fft - size) // 2 - (n_fft - hop) // 2
    covered = [range(at * hop + start, at * hop + start + size) for at in range(-20, 21)]
    own = set(range(hop))
    writers = [at - 20 for at, samples in enumerate(covered) if own & set(samples)]
    assert transform.output_reach == (max(0, -min(writers)), max(0, max(writers)))
    neighbors = [at - 20 for at, samples in enumerate(covered) if set(covered[20]) & set(samples)]
    assert transform.overlap_reach == max(neighbors) == -min(neighbors)
