"""Where the performer's training begins: plain strings, dampers and a small dry room; how long a note is remembered."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from plain_layers import conv1d, convnext, norm, shake

from melreformer_hf.audio.mel import mel_filter_bank
from melreformer_hf.models.note_performer.blocks_note_performer import interpolated, struck_string_levels
from melreformer_hf.models.note_performer.configuration_note_performer import NotePerformerConfig
from melreformer_hf.models.note_performer.modeling_note_performer import NotePerformerModel
from melreformer_hf.nn.sounding import SoundingNotes

CONFIG = NotePerformerConfig.preset("test")
HOP = 256 / 22050


def test_values_between_knots_and_beyond_them():
    knots = torch.tensor([1.0, 3.0, -1.0])
    places = torch.tensor([0.0, 0.25, 1.0, 1.5, 2.0, 2.5, -1.0])
    assert interpolated(knots, places).tolist() == [1.0, 1.5, 3.0, 1.0, -1.0, -1.0, 1.0]


def test_a_string_has_its_partials_and_fades_faster_the_higher_they_are():
    levels = struck_string_levels(CONFIG, torch.tensor([0.0, 0.5, 1.5]))
    assert levels.shape == (24, 3, 128)
    filters = mel_filter_bank(CONFIG.mel_config)
    a4 = levels[69 - 48]
    for partial, bin_width in ((1, 22050 / 1024), (3, 22050 / 1024)):
        frequency = 440.0 * partial
        band = int(filters[:, round(frequency / bin_width)].argmax())
        assert (a4[0, band] > a4[0, [band - 4, band + 4]]).all()
        fading = (a4[0, band] - a4[1, band]) / 0.5, (a4[1, band] - a4[2, band]) / 1.0
        for rate in fading:
            assert rate.item() == pytest.approx(0.4 + frequency / 2000, rel=0.03)
        # A sine of amplitude 0.05 / n, seen through a Hann window of 1024 samples.
        bins = torch.arange(513) * bin_width
        lobe = 256 * (-((bins - frequency) / (1.2 * bin_width)).square()).exp()
        expected = math.log(0.05 / partial * float(filters[band] @ lobe))
        assert a4[0, band].item() == pytest.approx(expected, abs=0.02)
    # Between its partials it is silent.
    assert a4[0, int(filters[:, round(660 * 1024 / 22050)].argmax())] < a4[0].max() - 5


def test_strings_are_tuned_in_equal_temperament():
    levels = struck_string_levels(CONFIG, torch.tensor([0.0]))[:, 0]
    filters = mel_filter_bank(CONFIG.mel_config)
    for key in (48, 52, 57, 64, 71):
        frequency = 440 * 2 ** ((key - 69) / 12)
        band = int(filters[:, round(frequency * 1024 / 22050)].argmax())
        assert abs(int(levels[key - 48].argmax()) - band) <= 1


def test_initial_values():
    model = NotePerformerModel(CONFIG)
    sounds = model.sounds
    velocities = torch.tensor([4.0, 32.0, 64.0, 96.0, 128.0])
    torch.testing.assert_close(sounds.loudness.detach(), 2 * (velocities / 80).log())
    torch.testing.assert_close(sounds.damping.detach(), torch.full((24,), math.log(20.0)))
    torch.testing.assert_close(sounds.fading.detach(), torch.full((24,), math.log(0.35)))
    assert not sounds.damping_by_velocity.any()
    torch.testing.assert_close(model.room.level.detach()[7], -6.0 - 0.15 * torch.arange(1, 7))
    torch.testing.assert_close(model.floor.detach(), torch.full((128,), math.log(1e-5)))
    ages = sounds.ages().clamp(min=0.0)
    torch.testing.assert_close(sounds.level.detach().view(24, 24, 128), struck_string_levels(CONFIG, ages))
    correction = model.correction
    assert not correction.head.bias.any() and 0 < correction.head.weight.std() < 0.02


@torch.no_grad()
def test_the_correction_by_its_formula():
    """It sees the levels of the frames around, about evenly spread around zero, and is added to them."""
    model = shake(NotePerformerModel(CONFIG))
    model.sounds.init_weights(), model.room.init_weights(), model.floor.fill_(-9.0)
    notes = {"onset": torch.tensor([[0.05, 0.1]]), "release": torch.tensor([[0.2, 0.5]])}
    notes |= {"pitch": torch.tensor([[60, 64]]), "velocity": torch.tensor([[70, 100]])}
    made, reach, correction = model(**notes, num_frames=20, first_frame=3).log_mel, 2, model.correction
    weight, bias = correction.head.weight.clone(), correction.head.bias.clone()
    correction.head.weight.zero_(), correction.head.bias.zero_()
    level = model(**notes, num_frames=24, first_frame=1).log_mel
    hidden = conv1d(correction.stem.weight, correction.stem.bias, (level + 6) / 4, 1)
    hidden = norm(correction.norm, convnext(correction.blocks[0], hidden)[..., reach:-reach].transpose(1, 2))
    expected = level[..., reach:-reach] + (hidden @ weight.T + bias).transpose(1, 2)
    assert (expected - level[..., reach:-reach]).abs().mean() > 0.1
    torch.testing.assert_close(made, expected.clamp(min=math.log(1e-5)), rtol=1e-4, atol=1e-3)


def test_look_ahead_and_memory_follow_from_the_sizes():
    model = NotePerformerModel(CONFIG)
    # Stem and one block of kernel 3: a frame each; the table begins 30 ms, 2.6 frames, before the onset.
    assert model.correction.reach == 2 and model.lookahead_frames == 2 + 4
    assert model.memory_in_s == pytest.approx(0.3 + (6 + 2 + 1) * HOP)
    tiny = NotePerformerModel(NotePerformerConfig())
    assert tiny.correction.reach == 6 and tiny.lookahead_frames == 10


def test_what_is_out_of_memory_is_out_of_hearing():
    torch.manual_seed(0)
    model = NotePerformerModel(CONFIG).eval()
    with torch.no_grad():
        model.sounds.damping.fill_(-3.0)  # dampers that hardly damp
        model.sounds.level.fill_(1.0)
        model.room.level.fill_(-1.0)
    nothing = model.perform(SoundingNotes.none(), 200)
    heard = model.perform(SoundingNotes(np.array([0.0]), np.array([0.5]), np.array([60]), np.array([90])), 200)
    last = int((heard != nothing).any(1)[0].nonzero()[-1])
    assert 0.5 + model.memory_in_s - 2 * HOP < (last + 0.5) * HOP < 0.5 + model.memory_in_s
