"""The five figures of sound, on signals whose figures are known."""

from __future__ import annotations

import math

import pytest
import torch
from testing_utils import assert_error

from melreformer_hf.metrics import sound_figures, sound_figures_distance
from melreformer_hf.metrics.figures import FIGURES, attack, chroma_entropy, frame_levels, level, pulse, quiet

RATE = 22050
TIME = torch.arange(20 * RATE) / RATE


def clicks(times: torch.Tensor, decay: float = 8.0) -> torch.Tensor:
    """Tones of 440 Hz that begin at once and decay."""
    waveform = torch.zeros_like(TIME)
    for start in times.tolist():
        after = TIME - start
        waveform += torch.where(
            after >= 0, 0.3 * torch.exp(-decay * after) * torch.sin(2 * math.pi * 440 * after), 0.0
        )
    return waveform


def test_level_and_quiet_frames_of_a_sine():
    # Amplitude 0.1 has a power of 0.005: -23.01 dB; every fourth second is below -60 dB.
    sine = 0.1 * torch.sin(2 * math.pi * 1000 * TIME)
    assert level(sine, RATE) == pytest.approx(10 * math.log10(0.005), abs=0.01)
    assert quiet(sine, RATE) == 0.0
    gated = sine * torch.where((TIME % 4) < 1, 1e-3, 1.0)
    assert quiet(gated, RATE) == pytest.approx(0.25, abs=0.01)
    assert level(gated, RATE) == pytest.approx(10 * math.log10(0.005 * 0.75), abs=0.01)
    assert level(sine * 0, RATE) == -80.0 and frame_levels(sine * 0, RATE).unique().tolist() == [-80.0]


def test_levels_are_those_of_frames_of_23_ms():
    steps = torch.where(TIME < 10, 0.01, 0.1)
    levels = frame_levels(steps, RATE)
    assert len(levels) == (len(steps) - 512) // 256 + 1
    assert levels[0] == pytest.approx(-40, abs=1e-3) and levels[-1] == pytest.approx(-20, abs=1e-3)


def test_attack_is_the_rise_that_one_step_in_200_exceeds():
    # 40 steps of 6 dB on one frame border each among 1721: between the 97th and the 98th percentile there is none.
    hop, gains = 256, torch.zeros(len(TIME) // 256 + 1)
    for index in range(40):
        gains[40 * index + 20 : 40 * index + 40] = 6.0
    waveform = 0.05 * 10 ** (gains.repeat_interleave(hop)[: len(TIME)] / 20)
    # A frame has two hops: half of a step's power comes in one, the rest in the next.
    half = 10 * math.log10((1 + 10**0.6) / 2)
    assert attack(waveform, RATE) == pytest.approx(half, abs=0.05)
    assert attack(torch.full_like(TIME, 0.1), RATE) == pytest.approx(0.0, abs=1e-4)
    sharp, soft = clicks(torch.arange(0.5, 19, 0.5)), clicks(torch.arange(0.5, 19, 0.5), decay=0.5)
    assert attack(sharp, RATE) > attack(soft, RATE) > 0


def test_a_steady_beat_has_a_pulse_and_chance_has_none():
    steady = clicks(torch.arange(0.5, 19.5, 0.5))
    chance = clicks(torch.rand(38, generator=torch.Generator().manual_seed(0)) * 19 + 0.5)
    assert pulse(steady, RATE) > 0.8 > 0.4 > pulse(chance, RATE)
    assert pulse(torch.full_like(TIME, 0.1), RATE) == 0.0
    slow = clicks(torch.arange(0.5, 19.5, 3.0))  # slower than the two seconds that are looked at
    assert pulse(slow, RATE) < 0.1


def test_chroma_entropy_of_one_two_and_all_pitch_classes():
    tones = [0.05 * torch.sin(2 * math.pi * 440 * 2 ** (step / 12) * TIME) for step in range(12)]
    octaves = tones[0] + 0.05 * torch.sin(2 * math.pi * 880 * TIME)
    assert chroma_entropy(octaves, RATE) < 0.01
    assert chroma_entropy(tones[0] + tones[4], RATE) == pytest.approx(1.0, abs=0.02)
    assert chroma_entropy(sum(tones), RATE) == pytest.approx(math.log2(12), abs=0.03)
    assert math.isnan(chroma_entropy(TIME * 0, RATE))


def test_distances_are_in_the_figures_units_and_silence_has_no_chroma():
    waveform = clicks(torch.arange(0.5, 19.5, 0.5))
    loud, soft, silent = (sound_figures(waveform * gain, RATE) for gain in (1.0, 0.5, 0.0))
    assert tuple(loud) == FIGURES
    distance = sound_figures_distance([loud, silent], [soft, silent])
    assert distance["level"] == pytest.approx(20 * math.log10(2) / 2, abs=1e-3)
    assert distance["chroma_entropy"] == pytest.approx(0, abs=1e-5)
    with pytest.raises(ValueError, match="at least one number"):
        sound_figures_distance([silent], [loud])


@pytest.mark.parametrize("waveform", [torch.zeros(2, 100000), torch.zeros(4 * RATE - 1), torch.zeros(100000).long()])
def test_refusals(waveform):
    with pytest.raises(ValueError) as error:
        sound_figures(waveform, RATE)
    assert_error(error, "waveform", "4 s", str(tuple(waveform.shape)))
