"""The inverse-STFT generator equals its formula, computed frame by frame and angle by angle."""

from __future__ import annotations

import math

import numpy
import pytest
import torch
from plain_layers import conv1d, convnext, linear, norm, shake

from melreformer_hf.audio.mel import MelConfig, log_mel_spectrogram, mel_filter_bank
from melreformer_hf.audio.stft import Transform
from melreformer_hf.models.hifi_vocoder.generator_istft import IstftGenerator, mel_affine, oscillator_turns

MEL = MelConfig.preset("hifigan", sampling_rate=2000, n_fft=32, win_length=24, hop_length=8, num_mel_bins=6, fmax=None)
BINS = 17
FRAMES = 5


def numpy_istft(spectrum: numpy.ndarray) -> numpy.ndarray:
    """Least-squares inverse of (frame, bin), windows overlapped and divided by the sum of their squares."""
    window = numpy.zeros(32)
    window[4:28] = 0.5 - 0.5 * numpy.cos(2 * numpy.pi * numpy.arange(24) / 24)
    signal, weight = numpy.zeros((FRAMES - 1) * 8 + 32), numpy.zeros((FRAMES - 1) * 8 + 32)
    for frame, line in enumerate(spectrum):
        part = slice(frame * 8, frame * 8 + 32)
        signal[part] += numpy.fft.irfft(line, 32) * window
        weight[part] += window**2
    return signal / weight.clip(1e-3)


def numpy_stft(signal: numpy.ndarray) -> numpy.ndarray:
    window = numpy.zeros(32)
    window[4:28] = 0.5 - 0.5 * numpy.cos(2 * numpy.pi * numpy.arange(24) / 24)
    return numpy.stack([numpy.fft.rfft(signal[frame * 8 : frame * 8 + 32] * window) for frame in range(FRAMES)])


def plain_waveform(generator: IstftGenerator, mel: torch.Tensor, first_frame: int) -> torch.Tensor:
    """(mel, frame) -> (frame * hop,)."""
    scale, shift = mel_affine(MEL)
    hidden = conv1d(generator.stem.weight, generator.stem.bias, mel[None] * scale + shift, 1)
    hidden = norm(generator.stem_norm, hidden.transpose(1, 2)).transpose(1, 2)
    for block in generator.blocks:
        hidden = convnext(block, hidden)
    head = linear(generator.head, norm(generator.norm, hidden.transpose(1, 2)))[0].double().numpy()
    count = max(1, generator.num_oscillators)
    change, pairs = head[:, :BINS], head[:, BINS:].reshape(FRAMES, 2, count, BINS)
    carried = pairs[:, 0] + 1j * pairs[:, 1]  # (frame, oscillator, bin)
    if generator.num_oscillators:
        for frame in range(FRAMES):
            for index in range(count):
                # Oscillator o of a bin sounds at (bin + (o - count // 2) / count) / n_fft cycles per sample.
                cycles = (numpy.arange(BINS) + (index - count // 2) / count) / 32
                carried[frame, index] *= numpy.exp(2j * numpy.pi * cycles * 8 * (frame + first_frame))
    carried = carried.sum(1)
    inverse = numpy.linalg.pinv(mel_filter_bank(MEL, torch.float64).numpy())
    prior = (inverse @ numpy.exp(mel.double().numpy())).T.clip(1e-5)
    magnitude = (prior * numpy.exp(change.clip(max=20.0))).clip(max=24.0)
    spectrum = magnitude * carried / numpy.sqrt(abs(carried) ** 2 + 1e-10)
    for _ in range(generator.refine_steps):
        rebuilt = numpy_stft(numpy_istft(spectrum))
        spectrum = magnitude * rebuilt / numpy.sqrt(abs(rebuilt) ** 2 + 1e-10)
    return torch.from_numpy(numpy_istft(spectrum)[12:-12])


@torch.no_grad()
@pytest.mark.parametrize("oscillators", [0, 1, 2, 3])
@pytest.mark.parametrize("refine", [0, 2])
@pytest.mark.parametrize("first_frame", [0, 11])
def test_generator(oscillators, refine, first_frame):
    generator = shake(IstftGenerator(MEL, 6, 8, 2, 3, refine, oscillators), std=0.4)
    mel = torch.randn(2, 6, FRAMES, generator=torch.Generator().manual_seed(1)) - 2
    actual = generator(mel, first_frame)
    for row in range(2):
        expected = plain_waveform(generator, mel[row], first_frame)
        torch.testing.assert_close(actual[row].double(), expected, rtol=2e-3, atol=2e-3 * expected.abs().max().item())


@pytest.mark.parametrize("count", [1, 2, 5])
def test_oscillators_far_into_a_piece(count):
    transform, first = Transform(32, 6, 32), 10**9 + 7
    cosine, sine = oscillator_turns(transform, count, 90, first, torch.device("cpu"))
    assert cosine.shape == sine.shape == (90, count, BINS)
    for frame, index, line in ((0, 0, 0), (3, count - 1, 5), (89, 0, 16)):
        # Whole turns dropped in integers, so that the plain formula stays exact too.
        turns = (first + frame) * 6 * (line * count + index - count // 2) % (32 * count) / (32 * count)
        assert abs(cosine[frame, index, line] - math.cos(2 * math.pi * turns)) < 1e-5
        assert abs(sine[frame, index, line] - math.sin(2 * math.pi * turns)) < 1e-5


@pytest.mark.parametrize("name", ["hifigan", "melreformer", "melgan"])
def test_input_range_goes_from_silence_to_a_full_scale_sine(name):
    config = MelConfig.preset(name)
    scale, shift = mel_affine(config)
    assert abs(config.floor_value * scale + shift + 1) < 1e-6
    # A Hann window of 1024 sums to 512, so that a sine has the magnitude 256 at its bin.
    bank = mel_filter_bank(config)
    logarithm = math.log if config.log_base == "e" else math.log10
    assert abs(logarithm(256**config.power * bank.max().item()) * scale + shift - 1) < 1e-6
    # What leaks into the neighboring bins adds a little to a sine of full scale.
    line = int(bank.max(0).values.argmax())
    sine = torch.sin(2 * math.pi * line / config.n_fft * torch.arange(8192.0))
    top = log_mel_spectrogram(sine, config)[:, 8:-8].max().item()
    assert 1.0 < top * scale + shift < 1.07
