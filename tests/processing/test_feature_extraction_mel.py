"""The feature extractor: its contract, its batches, what it refuses, and its way through a folder."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from testing_utils import assert_error
from transformers import AutoFeatureExtractor

from melreformer_hf import HifiVocoderConfig, HifiVocoderModel, MelFeatureExtractor
from melreformer_hf.audio.mel import MelConfig, log_mel_spectrogram

RATE = 22050
PRESETS = ("melreformer", "hifigan", "melgan", "specvqgan")


def noise(samples: int, seed: int = 0) -> torch.Tensor:
    return 0.3 * torch.randn(samples, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("preset", PRESETS)
def test_features_are_the_log_mels_of_the_contract(preset):
    mel = MelConfig.preset(preset)
    extractor = MelFeatureExtractor(mel=mel.to_dict())
    waveform = noise(20000)
    features = extractor(waveform, sampling_rate=mel.sampling_rate)
    expected = log_mel_spectrogram(waveform, mel)
    assert torch.equal(features.input_features[0], expected)
    assert features.num_frames.tolist() == [expected.shape[-1]] == [mel.num_frames(20000)]
    assert extractor.feature_size == mel.num_mel_bins and extractor.sampling_rate == mel.sampling_rate
    assert extractor.mel_config == mel


def test_the_default_contract_is_that_of_the_models():
    assert MelFeatureExtractor().mel_config == HifiVocoderConfig().mel_config


def test_a_batch_is_padded_with_silence_and_its_rows_are_those_of_single_calls():
    extractor = MelFeatureExtractor()
    rows = [noise(12000, 1), noise(22050, 2).numpy(), noise(5000, 3).double()]
    batch = extractor(rows, sampling_rate=RATE)
    assert batch.num_frames.tolist() == [46, 86, 19] and batch.input_features.shape == (3, 128, 86)
    assert batch.input_features.dtype == torch.float32
    silence = extractor.mel_config.floor_value
    for row, features, frames in zip(rows, batch.input_features, batch.num_frames.tolist(), strict=True):
        single = extractor(row, sampling_rate=RATE).input_features[0]
        torch.testing.assert_close(features[:, :frames], single, rtol=0, atol=1e-5)
        assert (features[:, frames:] == silence).all()
    assert extractor.padding_value == silence
    quiet = extractor(np.zeros(RATE, dtype=np.float32), sampling_rate=RATE).input_features
    torch.testing.assert_close(quiet, torch.full_like(quiet, silence), rtol=0, atol=1e-4)


def test_a_matrix_is_a_batch_of_recordings():
    extractor = MelFeatureExtractor()
    matrix = torch.stack([noise(6000, 4), noise(6000, 5)])
    together = extractor(matrix, sampling_rate=RATE).input_features
    apart = extractor(list(matrix), sampling_rate=RATE).input_features
    assert torch.equal(together, apart)


def test_a_saved_extractor_comes_back_through_the_auto_class(tmp_path):
    mel = MelConfig.preset("melreformer")
    MelFeatureExtractor(mel=mel.to_dict()).save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert stored["mel"]["num_mel_bins"] == mel.num_mel_bins
    assert stored["feature_extractor_type"] == "MelFeatureExtractor"
    loaded = AutoFeatureExtractor.from_pretrained(tmp_path)
    assert type(loaded) is MelFeatureExtractor and loaded.mel_config == mel
    waveform = noise(9000)
    expected = log_mel_spectrogram(waveform, mel)
    assert torch.equal(loaded(waveform, sampling_rate=mel.sampling_rate).input_features[0], expected)


def test_a_saved_extractor_feeds_the_model_beside_it(tmp_path):
    config = HifiVocoderConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1)
    HifiVocoderModel(config).save_pretrained(tmp_path)
    MelFeatureExtractor(mel=config.mel_config.to_dict()).save_pretrained(tmp_path)
    extractor, model = AutoFeatureExtractor.from_pretrained(tmp_path), HifiVocoderModel.from_pretrained(tmp_path)
    features = extractor(noise(10000), sampling_rate=RATE)
    with torch.no_grad():
        assert model(features.input_features).waveform.shape == (1, features.num_frames.item() * 256)


@pytest.mark.parametrize(
    ("waveform", "rate", "fragments"),
    [
        (noise(RATE), 44100, ["sampling_rate must be 22050", "44100", "resample"]),
        (noise(RATE), None, ["sampling_rate must be 22050", "None"]),
        (torch.zeros(0), RATE, ["empty"]),
        ([], RATE, ["at least one recording"]),
        (torch.zeros(1), RATE, ["1"]),
        (torch.zeros(2, 3, RATE), RATE, ["mono", "(3, 22050)", "mean"]),
        (torch.zeros(RATE, dtype=torch.int16), RATE, ["floating point", "int16"]),
        (np.full(RATE, np.nan), RATE, ["finite", "NaN"]),
        (torch.full((RATE,), float("inf")), RATE, ["finite"]),
    ],
)
def test_bad_input_is_refused(waveform, rate, fragments):
    with pytest.raises(ValueError) as error:
        MelFeatureExtractor()(waveform, sampling_rate=rate)
    assert_error(error, *fragments)


def test_an_unknown_field_of_the_contract_is_refused():
    with pytest.raises((ValueError, TypeError), match="hop_lenght"):
        MelFeatureExtractor(mel={**MelConfig.preset("hifigan").to_dict(), "hop_lenght": 256})
