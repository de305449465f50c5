"""Log-mel transforms equal those of the original programs (fixtures 01, 02, 03, 04, 07)."""

from __future__ import annotations

import pytest
import torch
from golden_utils import Fixture, fixture
from torch.nn.functional import pad

from melreformer_hf.audio.mel import MelConfig, log_mel_spectrogram, mel_filter_bank, mel_spectrogram, undo_log

# The golden set's README: mel spectrograms near the log floor.
FLOOR_TOLERANCE = 1e-3


def melreformer_config(arguments: dict) -> MelConfig:
    """Of `MelSpec`'s arguments; its `seq_len` only tells how many frames there will be."""
    names = {"n_mels": "num_mel_bins", "sr": "sampling_rate", "eps": "magnitude_epsilon"}
    fields = {names.get(key, key): value for key, value in arguments.items() if key != "seq_len"}
    fields |= {key: float(fields[key]) for key in ("fmin", "fmax") if fields.get(key) is not None}
    return MelConfig.preset("melreformer", **fields)


def test_melreformer_mel():
    golden = fixture("01_melreformer")
    config = melreformer_config(golden.config["mel_args"])
    waves = [key for key in golden.io if key.startswith("mel.") and key.endswith("wave")]
    assert waves
    for wave in waves:
        waveform, result = golden.io[wave], f"{wave.removesuffix('wave')}out"
        if config.center:  # the original pads before it centers, too
            margin = config.n_fft - config.hop_length
            waveform = pad(waveform, (margin // 2, margin - margin // 2), mode="reflect")
        golden.assert_close(result, log_mel_spectrogram(waveform, config), FLOOR_TOLERANCE)
    bank = mel_filter_bank(config)
    golden.assert_close("mel.basis_rowsum", bank.sum(1))
    golden.assert_close("mel.basis_colsum", bank.sum(0))


def test_hifihybrid_mel():
    golden = fixture("02_hifihybrid")
    config = MelConfig.preset("melreformer")
    for name in ("real", "fake"):
        golden.assert_close(f"mel.{name}", log_mel_spectrogram(golden.io[f"d.in.{name}"], config), FLOOR_TOLERANCE)


def test_hifigan_mel():
    golden = fixture("03_hifigan")
    for index, arguments in enumerate(golden.config["mel_args"]):
        config = MelConfig.preset(
            "hifigan",
            sampling_rate=arguments["sampling_rate"],
            n_fft=arguments["n_fft"],
            win_length=arguments["win_size"],
            hop_length=arguments["hop_size"],
            num_mel_bins=arguments["num_mels"],
            fmin=float(arguments["fmin"]),
            fmax=arguments["fmax"],
        )
        golden.assert_close(f"mel.{index}.out", log_mel_spectrogram(golden.io["mel.wave"], config), FLOOR_TOLERANCE)


def test_melgan_mel():
    golden = fixture("04_melgan")
    names = {
        "hop_length": "hop_length",
        "n_fft": "n_fft",
        "win_length": "win_length",
        "n_mel_channels": "num_mel_bins",
    }
    names |= {"sampling_rate": "sampling_rate", "mel_fmin": "fmin", "mel_fmax": "fmax"}
    overrides = {names[key]: value for key, value in golden.config["audio2mel_args"].items()}
    mel = log_mel_spectrogram(golden.io["mel.wave"].squeeze(1), MelConfig.preset("melgan", **overrides))
    golden.assert_close("mel.out", mel, FLOOR_TOLERANCE)


def beginning(golden: Fixture, name: str) -> tuple[str, int]:
    """The key of a piece that begins so, and its number of frames."""
    keys = [key for key in golden.io if key.startswith(name)]
    if not keys:
        pytest.skip(f"the golden set in use has no {name}")
    assert len(keys) == 1
    return keys[0], golden.io[keys[0]].shape[-1]


def specvqgan_config(arguments: dict) -> MelConfig:
    return MelConfig.preset(
        "specvqgan",
        sampling_rate=arguments["sr"],
        n_fft=arguments["n_fft"],
        win_length=arguments["n_fft"],
        hop_length=arguments["hop"],
        num_mel_bins=arguments["n_mels"],
        fmin=float(arguments["fmin"]),
        fmax=float(arguments["fmax"]),
        power=float(arguments["power"]),
    )


def test_specvqgan_mel_of_a_full_clip():
    golden = fixture("07_specvqgan_mel")
    arguments = golden.config["args"]
    config = specvqgan_config(arguments)
    waveform = golden.io["wave_long_int16"].float() / 32768
    frames, crop = golden.io["mel_long"].shape[-1], arguments["crop"]
    mel = log_mel_spectrogram(waveform[: arguments["length"]], config)[:, :frames]
    golden.assert_close("mel_long", mel, FLOOR_TOLERANCE)
    start = (frames - crop) // 2
    golden.assert_close("mel_center_crop", mel[:, start : start + crop], FLOOR_TOLERANCE)
    golden.assert_close("model_input", 2 * mel[:, start : start + crop] - 1, 2 * FLOOR_TOLERANCE)


def test_specvqgan_mel_of_a_short_clip():
    golden = fixture("07_specvqgan_mel")
    arguments = golden.config["args"]
    waveform = torch.zeros(arguments["length"], dtype=torch.float64)  # the original pads in double precision
    waveform[: golden.io["wave"].numel()] = golden.io["wave"]
    mel = log_mel_spectrogram(waveform, specvqgan_config(arguments))
    kept = golden.io["mel_short_padded"].shape[-1]
    golden.assert_close("mel_short_padded", mel[:, :kept], FLOOR_TOLERANCE)
    end = int(golden.io["mel_short_shape"][1])
    golden.assert_close("mel_short_padded_rest_max", mel[:, kept:end].max().reshape(1))


def test_specvqgan_linear_mel_and_the_inverse_of_its_log():
    golden = fixture("07_specvqgan_mel")
    config = specvqgan_config(golden.config["args"])
    waveform = golden.io["wave_long_int16"].float() / 32768
    key, frames = beginning(golden, "mel_linear_first_")
    golden.assert_close(key, mel_spectrogram(waveform, config)[:, :frames])
    key, frames = beginning(golden, "inverse_mel_linear_first_")
    golden.assert_close(key, undo_log(golden.io["mel_long"][:, :frames], config))


def test_specvqgan_mel_with_zeros_around_the_clip():
    """What librosa 0.10 and later compute: they pad with zeros, not by reflection."""
    golden = fixture("07_specvqgan_mel")
    arguments = golden.config["args"]
    config = specvqgan_config(arguments)
    waveform = golden.io["wave_long_int16"].float()[: arguments["length"]] / 32768
    margin = -(-config.n_fft // config.hop_length)
    padded = torch.nn.functional.pad(waveform, (margin * config.hop_length,) * 2)
    mel = log_mel_spectrogram(padded, config)[:, margin : margin + golden.io["mel_long"].shape[-1]]
    key, frames = beginning(golden, "mel_long_constantpad_first")
    golden.assert_close(key, mel[:, :frames], FLOOR_TOLERANCE)
    key, frames = beginning(golden, "mel_long_constantpad_last")
    golden.assert_close(key, mel[:, -frames:], FLOOR_TOLERANCE)
