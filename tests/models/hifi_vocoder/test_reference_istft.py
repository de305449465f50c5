"""The inverse-STFT generator equals its formula, computed frame by frame and angle by angle."""

from __future__ import annotations

import dataclasses
import math

import numpy
import pytest
import torch
from plain_layers import conv1d, convnext, linear, norm, shake

from melreformer_hf.audio.mel import MelConfig, log_mel_spectrogram, mel_filter_bank, undo_log
from melreformer_hf.audio.stft import Transform
from melreformer_hf.models.hifi_vocoder.generator_istft import (
    IstftGenerator,
    SpectralTables,
    band_slices,
    mel_affine,
    oscillator_turns,
)

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
    magnitude = prior * numpy.exp(change.clip(max=20.0))
    wanted = numpy.exp(mel.double().numpy()).T.clip(1e-5)
    for _ in range(generator.mel_corrections):
        magnitude = magnitude * plain_gain(magnitude, wanted, 1.0)
    magnitude = magnitude.clip(max=24.0)
    spectrum, before = magnitude * carried / numpy.sqrt(abs(carried) ** 2 + 1e-10), None
    for _ in range(generator.refine_steps):
        rebuilt = numpy_stft(numpy_istft(spectrum))
        # Perraudin's c_n = t_n + a (t_n - t_(n-1)), whose length does not matter.
        driven = rebuilt if before is None else rebuilt + generator.refine_momentum * (rebuilt - before)
        before = rebuilt
        gain = plain_gain(abs(rebuilt), wanted, generator.refine_feedback)
        spectrum = magnitude * gain * driven / numpy.sqrt(abs(driven) ** 2 + 1e-10)
    return torch.from_numpy(numpy_istft(spectrum)[12:-12])


def plain_gain(magnitude: numpy.ndarray, wanted: numpy.ndarray, exponent: float) -> numpy.ndarray:
    """(frame, bin): each band asks for wanted / heard, each bin listens to its bands by their weights in it."""
    bank = mel_filter_bank(MEL, torch.float64).numpy()  # (mel, bin)
    gain = numpy.ones_like(magnitude)
    for frame in range(FRAMES):
        asked = (wanted[frame] / (bank @ magnitude[frame]).clip(1e-5)) ** exponent
        for line in range(BINS):
            if bank[:, line].any():
                gain[frame, line] = numpy.average(asked, weights=bank[:, line])
    return gain


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


@torch.no_grad()
@pytest.mark.parametrize(
    ("corrections", "momentum", "feedback"), [(2, 0.0, 0.0), (0, 0.6, 0.0), (0, 0.0, 0.5), (1, 0.4, 1.0)]
)
def test_magnitudes_follow_the_mel_and_steps_their_momentum(corrections, momentum, feedback):
    generator = shake(IstftGenerator(MEL, 6, 8, 2, 3, 3, 2, corrections, momentum, feedback), std=0.4)
    mel = torch.randn(1, 6, FRAMES, generator=torch.Generator().manual_seed(1)) - 2
    expected = plain_waveform(generator, mel[0], 4)
    torch.testing.assert_close(
        generator(mel, 4)[0].double(), expected, rtol=0, atol=2e-3 * expected.abs().max().item()
    )


@torch.no_grad()
@pytest.mark.parametrize(
    "contract", [{}, {"power": 2.0, "log_base": "10", "log_multiplier": 20.0, "log_offset": -3.0}]
)
def test_corrected_magnitudes_have_the_mel_that_was_given(contract):
    config = MelConfig.preset("hifigan", num_mel_bins=40, **contract)
    time = torch.arange(256 * 30) / config.sampling_rate
    mel = log_mel_spectrogram(sum(torch.sin(6.2832 * pitch * time) for pitch in (220.0, 1010.0, 3300.0))[None], config)
    wanted = undo_log(mel, config).transpose(1, 2).clamp(min=config.log_floor)
    change = 1.5 * torch.randn(1, 30, 513, generator=torch.Generator().manual_seed(0))
    errors = []
    for corrections in (0, 1, 4):
        magnitude = IstftGenerator(config, 4, 4, 1, 3, 0, 1, corrections)._magnitude(mel, change, wanted)
        heard = (magnitude**config.power @ mel_filter_bank(config).T).clamp(min=config.log_floor)
        errors.append((heard / wanted).log().abs().mean().item())
    assert errors[1] < 0.25 * errors[0] and errors[2] < 0.75 * errors[1]


@pytest.mark.parametrize(
    "contract", [{}, {"num_mel_bins": 3}, {"n_fft": 64, "num_mel_bins": 40}, {"fmin": 400.0, "fmax": 700.0}]
)
def test_products_with_the_filter_bank_in_parts_equal_whole_ones(contract):
    tables = SpectralTables(dataclasses.replace(MEL, **contract))
    for name in ("bank", "shares"):
        table = tables.get_buffer(name)
        values = torch.randn(2, 3, len(table), generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(tables.product(values, name), values @ table)
    whole = band_slices(tables.bank, 2)
    assert [outputs.stop for _, outputs in whole][-1] == tables.bank.shape[1]
    multiplied = sum((inputs.stop - inputs.start) * (outputs.stop - outputs.start) for inputs, outputs in whole)
    assert multiplied < tables.bank.numel()


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
