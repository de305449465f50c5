"""Crops of whole log-mels: the same places as crops of waveforms, each recording's mel computed once."""

from __future__ import annotations

import pickle

import pytest
import torch
from audio_files import RATE, write_music

from melreformer_hf.audio.mel import MelConfig, log_mel_spectrogram
from melreformer_hf.data import mel_crops
from melreformer_hf.data.building import BuildConfig, build_dataset
from melreformer_hf.data.built import BuiltRecordings
from melreformer_hf.data.mel_crops import MelCropStream, whole_log_mel
from melreformer_hf.data.recordings import CropSettings

MEL = MelConfig(sampling_rate=RATE)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> BuiltRecordings:
    root = tmp_path_factory.mktemp("mel_crops")
    write_music(root / "wav")
    build_dataset(root / "wav", root / "built", BuildConfig(sampling_rate=RATE, workers=1), progress=False)
    return BuiltRecordings(root / "built", "train", channels=1)


def test_parts_join_to_the_mel_of_the_whole(monkeypatch):
    waveform = torch.randn(256 * 70 + 99, generator=torch.Generator().manual_seed(0)) * 0.1
    whole = log_mel_spectrogram(waveform, MEL)
    monkeypatch.setattr(mel_crops, "_PART_FRAMES", 16)
    parts = whole_log_mel(waveform, MEL)
    assert parts.shape == whole.shape == (128, 70) and parts.dtype == torch.float16
    torch.testing.assert_close(parts.float(), whole, rtol=2e-3, atol=5e-3)


@pytest.mark.parametrize("silence_weight", [1.0, 0.0])
def test_crops_lie_where_those_of_waveforms_lie(store, silence_weight):
    settings = CropSettings(min_samples=256 * 16, max_samples=256 * 60, multiple=256, silence_weight=silence_weight)
    stream = MelCropStream(store, settings, MEL, seed=3)
    plain = store.crops(256 * 16, 256 * 60, seed=3, multiple=256, silence_weight=silence_weight)
    for index in range(12):
        item, other = stream.item(index), plain.item(index)
        assert item["recording"] == other["recording"] and item["num_frames"] == other["num_samples"] // 256
        expected = log_mel_spectrogram(other["waveform"], MEL)
        inner = slice(4, -4)  # a crop starts between frames, and its ends see what lies beside it
        gap = (item["mel"].float() - expected)[:, inner].abs().mean()
        assert item["mel"].shape == expected.shape and gap < 0.35, index
    assert torch.equal(stream.item(5)["mel"], MelCropStream(store, settings, MEL, seed=3).item(5)["mel"])


def test_mels_are_kept_and_do_not_travel_to_workers(store):
    stream = MelCropStream(store, CropSettings(min_samples=2560, max_samples=2560, multiple=256), MEL)
    first = stream.item(0)
    assert (
        stream._mel(next(r for r in store.recordings if r.name == first["recording"]))
        is stream._mels[first["recording"]]
    )
    assert pickle.loads(pickle.dumps(stream))._mels == {}
