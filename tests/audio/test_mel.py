"""The mel contract: rules, differentiability, batching."""

from __future__ import annotations

import pytest
import torch
from testing_utils import assert_error

from melreformer_hf.audio.mel import MelConfig, log_mel_spectrogram, undo_log

PRESETS = ["melreformer", "hifigan", "melgan", "specvqgan"]


@pytest.mark.parametrize("name", PRESETS)
def test_silence_has_the_floor_value(name):
    config = MelConfig.preset(name)
    mel = log_mel_spectrogram(torch.zeros(8192), config)
    torch.testing.assert_close(mel, torch.full_like(mel, config.floor_value), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("samples", [1024, 5000, 25600])
def test_frames_follow_the_formula_and_rows_are_independent(name, samples):
    config = MelConfig.preset(name)
    waveform = torch.randn(2, 3, samples, generator=torch.Generator().manual_seed(0)) * 0.1
    mel = log_mel_spectrogram(waveform, config)
    assert mel.shape == (2, 3, config.num_mel_bins, config.num_frames(samples))
    torch.testing.assert_close(log_mel_spectrogram(waveform[1, 2], config), mel[1, 2], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", PRESETS)
def test_gradients_are_finite_even_in_silence(name):
    waveform = torch.zeros(4096)
    waveform[2048:] = torch.sin(torch.arange(2048) * 0.2)
    waveform.requires_grad_(True)
    log_mel_spectrogram(waveform, MelConfig.preset(name)).sum().backward()
    assert waveform.grad.isfinite().all() and waveform.grad.any()


def test_logarithm_is_undone_above_the_floor():
    config = MelConfig.preset("melgan")
    mel = torch.rand(2, 80, 5) + 1e-3
    torch.testing.assert_close(undo_log(mel.log10(), config), mel)


def test_dictionary_round_trip_and_unknown_fields():
    config = MelConfig.preset("hifigan", num_mel_bins=64)
    assert MelConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ValueError) as error:
        MelConfig.from_dict({"num_mel_bin": 3})
    assert_error(error, "num_mel_bin", "Did you mean 'num_mel_bins'")


@pytest.mark.parametrize(
    ("field", "value"),
    [("fmax", 20000.0), ("hop_length", 0), ("win_length", 4096), ("power", 3.0), ("log_base", "2"), ("fmin", 9000.0)]
    + [("sampling_rate", "22050"), ("hop_length", 256.5), ("n_fft", None), ("log_floor", float("inf")), ("center", 1)]
    + [("num_mel_bins", True), ("fmin", float("nan")), ("sampling_rate", -22050), ("log_base", 10), ("clip_max", "1")],
)
def test_broken_rules_name_field_and_value(field, value):
    with pytest.raises(ValueError) as error:
        MelConfig.preset("hifigan", **{field: value})
    assert_error(error, field, repr(value))


def test_mismatch_names_the_fields_and_both_values():
    ours, theirs = MelConfig.preset("melreformer"), MelConfig.preset("hifigan")
    with pytest.raises(ValueError) as error:
        ours.check_matches(theirs, "the expansion", "the vocoder")
    assert_error(error, "num_mel_bins: the expansion has 128, the vocoder has 80", "power", "fmax")
    ours.check_matches(MelConfig.preset("melreformer", fmax=11025.0))


@pytest.mark.parametrize("waveform", [torch.zeros(0), torch.zeros(1), torch.zeros(300)])
def test_too_short_audio_is_refused(waveform):
    with pytest.raises(ValueError) as error:
        log_mel_spectrogram(waveform, MelConfig.preset("hifigan"))
    assert_error(error, "waveform", "at least", str(waveform.numel()))


def test_integer_audio_is_refused():
    with pytest.raises(ValueError, match="int16"):
        log_mel_spectrogram(torch.zeros(4096, dtype=torch.int16), MelConfig.preset("hifigan"))
