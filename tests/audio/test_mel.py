"""The mel contract: rules, differentiability, batching."""

from __future__ import annotations

import pytest
import torch
from borders import check_borders
from testing_utils import assert_error

from melreformer_hf.audio.mel import MelConfig, log_mel_spectrogram, mel_filter_bank, mel_spectrogram, undo_log

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


@pytest.mark.parametrize("name", ["hifigan", "melgan", "melreformer"])
@pytest.mark.parametrize("samples", [2500, 2501, 3000])
def test_odd_padding_is_the_originals(name, samples):
    """HiFi-GAN and MelGAN pad int((n_fft - hop) / 2) on both sides, MelReformer the rest at the end."""
    config = MelConfig.preset(name, hop_length=125)
    before = (1024 - 125) // 2
    after = 1024 - 125 - before if name == "melreformer" else before
    waveform = torch.randn(1, samples, generator=torch.Generator().manual_seed(0)) * 0.1
    padded = torch.nn.functional.pad(waveform[:, None], (before, after), mode="reflect")[:, 0]
    spectrum = torch.stft(padded, 1024, 125, window=torch.hann_window(1024), center=False, return_complex=True)
    power = spectrum.abs().square() + config.magnitude_epsilon
    mel = mel_filter_bank(config) @ (power if config.power == 2 else power.sqrt())
    expected = mel.clamp(min=1e-5).log10() if config.log_base == "10" else mel.clamp(min=1e-5).log()
    assert config.num_frames(samples) == expected.shape[-1]
    torch.testing.assert_close(log_mel_spectrogram(waveform, config), expected, rtol=1e-4, atol=1e-4)


def test_even_padding_is_told_apart_only_where_it_differs():
    config = MelConfig.preset("hifigan")
    config.check_matches(MelConfig.from_dict({**config.to_dict(), "even_padding": True}))
    odd = MelConfig.preset("hifigan", hop_length=125)
    assert odd.even_padding and not MelConfig.preset("hifigan", hop_length=125, even_padding=False).even_padding
    with pytest.raises(ValueError, match="even_padding: ours has True, theirs has False"):
        odd.check_matches(MelConfig.from_dict({**odd.to_dict(), "even_padding": False}), "ours", "theirs")
    with pytest.raises(ValueError, match="at least 1001 samples"):
        log_mel_spectrogram(torch.zeros(1000), MelConfig.preset("hifigan", hop_length=1000, n_fft=1025))


def test_frames_of_a_centered_odd_transform():
    config = MelConfig.preset("specvqgan", n_fft=1023, win_length=1023)
    assert log_mel_spectrogram(torch.zeros(2560), config).shape[-1] == config.num_frames(2560) == 10


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


@pytest.mark.parametrize(("changes", "shortest"), [({}, 385), ({"center": True}, 513), ({"hop_length": 1024}, 1024)])
def test_the_shortest_audio_can_be_reflected_and_fills_a_hop(changes, shortest):
    config = MelConfig(**changes)
    assert log_mel_spectrogram(torch.zeros(shortest), config).shape[-1] == config.num_frames(shortest)
    with pytest.raises(ValueError, match=f"at least {shortest} samples"):
        log_mel_spectrogram(torch.zeros(shortest - 1), config)


@pytest.mark.parametrize("change", [{"log_offset": 2.0}, {"log_multiplier": 3.0}])
def test_offset_and_multiplier_work_alone(change):
    waveform = 0.1 * torch.randn(4096, generator=torch.Generator().manual_seed(0))
    plain, changed = (log_mel_spectrogram(waveform, MelConfig(**fields)) for fields in ({}, change))
    expected = plain * change.get("log_multiplier", 1.0) + change.get("log_offset", 0.0)
    torch.testing.assert_close(changed, expected)


@pytest.mark.parametrize("base", ["e", "10"])
def test_undoing_the_logarithm_is_its_inverse(base):
    config = MelConfig(log_base=base, log_offset=2.0, log_multiplier=3.0)
    waveform = 0.1 * torch.randn(4096, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        undo_log(log_mel_spectrogram(waveform, config), config), mel_spectrogram(waveform, config)
    )


def test_the_default_contract_is_that_of_the_models():
    stated = {"sampling_rate": 22050, "n_fft": 1024, "win_length": 1024, "hop_length": 256, "num_mel_bins": 128}
    stated |= {"fmin": 0.0, "fmax": None, "power": 1.0, "magnitude_epsilon": 0.0, "log_base": "e", "log_floor": 1e-5}
    stated |= {"log_multiplier": 1.0, "log_offset": 0.0, "clip_min": None, "clip_max": None, "center": False}
    stated |= {"even_padding": False}
    assert MelConfig().to_dict() == stated


def test_integer_audio_is_refused():
    with pytest.raises(ValueError, match="int16"):
        log_mel_spectrogram(torch.zeros(4096, dtype=torch.int16), MelConfig.preset("hifigan"))


@pytest.mark.parametrize("field", ["sampling_rate", "n_fft", "win_length", "hop_length", "num_mel_bins"])
def test_counts_are_integers(field):
    """Also after the same contract with the integer, which is equal to the float, was built and kept."""
    value = getattr(MelConfig.preset("hifigan"), field)
    assert MelConfig.preset("hifigan", **{field: value}) is MelConfig.preset("hifigan", **{field: value})
    for build in (MelConfig.preset, lambda _, **values: MelConfig(**values)):
        with pytest.raises(ValueError) as error:
            build("hifigan", **{field: float(value)})
        assert_error(error, field, "a whole number", repr(float(value)))


def plain_log_mel(waveform: torch.Tensor, config: MelConfig) -> torch.Tensor:
    """The formula of `MelConfig` with torch's own transform, in the precision of the waveform."""
    padded = torch.nn.functional.pad(waveform[:, None], config.padding, mode="reflect")[:, 0]
    window = torch.hann_window(config.win_length, dtype=waveform.dtype)
    spectrum = torch.stft(
        padded, config.n_fft, config.hop_length, config.win_length, window, center=False, return_complex=True
    )
    values = (spectrum.abs().square() + config.magnitude_epsilon) ** (config.power / 2)
    mel = (mel_filter_bank(config, waveform.dtype) @ values).clamp(min=config.log_floor)
    value = (mel.log() if config.log_base == "e" else mel.log10()) * config.log_multiplier + config.log_offset
    return value if config.clip_min is None else value.clamp(config.clip_min, config.clip_max)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("changes", [{}, {"hop_length": 200, "win_length": 800}], ids=["aligned", "odd"])
def test_values_and_gradients_equal_the_plain_formula(name, changes):
    """Long enough for several blocks of frames, and two rows at once."""
    config = MelConfig.preset(name, **changes)
    waveform = torch.randn(2, 90_000, generator=torch.Generator().manual_seed(0)) * 0.1
    results = []
    for function, dtype in ((log_mel_spectrogram, torch.float32), (plain_log_mel, torch.float64)):
        leaf = waveform.clone().to(dtype).requires_grad_(True)
        mel = function(leaf, config)
        mel.square().mean().backward()
        results.append((mel.detach().double(), leaf.grad.double()))
    (mel, gradient), (expected, expected_gradient) = results
    assert mel.shape == (2, config.num_mel_bins, config.num_frames(90_000))
    torch.testing.assert_close(mel, expected, rtol=0, atol=2e-4)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-3, atol=1e-4 * expected_gradient.abs().max())


def test_autocast_does_not_lower_the_precision():
    waveform = torch.randn(8192, generator=torch.Generator().manual_seed(0)) * 0.1
    config = MelConfig.preset("hifigan")
    expected = log_mel_spectrogram(waveform, config)
    with torch.autocast("cpu", torch.bfloat16):
        actual = log_mel_spectrogram(waveform, config)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    assert log_mel_spectrogram(waveform.bfloat16(), config).dtype == torch.float32
    assert log_mel_spectrogram(waveform.double(), config).dtype == torch.float64


def test_tables_built_in_inference_mode_serve_training():
    config = MelConfig.preset("hifigan", num_mel_bins=33)  # of no other test: nothing is cached yet
    waveform = torch.randn(4096, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        log_mel_spectrogram(waveform, config)
    waveform.requires_grad_(True)
    log_mel_spectrogram(waveform, config).sum().backward()
    assert waveform.grad.any()
    assert mel_filter_bank(config) is mel_filter_bank(config), "built once"


def test_tables_of_a_tracer_are_not_kept():
    from torch._subclasses.fake_tensor import FakeTensorMode

    config = MelConfig.preset("hifigan", num_mel_bins=34)
    with FakeTensorMode():
        mel_filter_bank(config)
    assert type(mel_filter_bank(config)) is torch.Tensor
    assert mel_filter_bank(config).sum() > 0


def test_borders_of_the_contract():
    inside = {
        "sampling_rate": ({"sampling_rate": 1, "fmax": 0.5, "num_mel_bins": 1},),
        "n_fft": ({"n_fft": 1, "win_length": 1, "hop_length": 1, "num_mel_bins": 1},),
        "win_length": (1, 1024),
        "hop_length": (1, 1024),
        "num_mel_bins": (1,),
        "fmin": (0.0, {"fmin": 999.0, "fmax": 1000.0}),
    }
    outside = {
        **dict.fromkeys(("sampling_rate", "n_fft", "num_mel_bins"), (0,)),
        **dict.fromkeys(("win_length", "hop_length"), (0, 1025)),
        "fmin": (-0.1, {"fmin": 1000.0, "fmax": 1000.0}),
    }
    check_borders(MelConfig, inside, outside)
