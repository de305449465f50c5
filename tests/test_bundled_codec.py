"""The codec that comes with the package: found by name, small, whole, and better than nothing at every bitrate."""

from __future__ import annotations

import shutil

import pytest
import torch

from melreformer_hf.hub.bundled import BUNDLED, find_bundled
from melreformer_hf.metrics import si_sdr
from melreformer_hf.models.soundstream.modeling_soundstream import SoundStreamModel
from melreformer_hf.pipelines.codecs import load_codec, load_entropy
from melreformer_hf.pipelines.coding import block_coder

FOLDER = BUNDLED / "codec-tiny"


def test_it_is_found_by_name_unless_a_folder_has_it(tmp_path, monkeypatch):
    assert find_bundled("codec-tiny") == str(FOLDER)
    for other in ("codec-none", "user/codec-tiny", "piano-tiny", str(FOLDER)):
        assert find_bundled(other) == other
    monkeypatch.chdir(tmp_path)
    shutil.copytree(FOLDER, tmp_path / "codec-tiny")
    assert find_bundled("codec-tiny") == "codec-tiny"
    model = SoundStreamModel.from_pretrained("codec-tiny")
    monkeypatch.chdir("/")
    bundled = SoundStreamModel.from_pretrained("codec-tiny")
    assert bundled.dtype == torch.float32
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), bundled.parameters(), strict=True))


def test_it_is_small_and_tells_what_it_is():
    size = sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file())
    assert size <= 8 * 2**20
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    for words in ('SoundStreamModel.from_pretrained("codec-tiny")', "license: cc-by-sa-4.0", "CC BY", "kbit/s"):
        assert words in card
    assert "Not stated" not in card and "CC-BY-SA-4.0" in (FOLDER / "LICENSE").read_text(encoding="utf-8")


@torch.no_grad()
def test_more_bits_are_nearer_to_a_chord():
    model = load_codec("codec-tiny")
    config, time = model.config, torch.arange(2 * 22050) / 22050
    assert (config.sampling_rate, config.audio_channels, config.frame_rate, config.bandwidth()) == (22050, 1, 50, 6)
    chord = sum((2 * torch.pi * pitch * time).sin() * (-2 * time).exp() for pitch in (220.0, 277.2, 329.6)) / 6
    codes = model.encode(chord[None, None]).audio_codes
    made = [model.decode(codes[:, :levels]).audio_values[0, :, : len(chord)] for levels in (1, 3, 12)]
    ratios = [si_sdr(one, chord[None]).item() for one in made]
    assert ratios[0] < ratios[1] < ratios[2] and ratios[2] > 3  # dB


@pytest.mark.parametrize("kbps, levels", [(0.5, 1), (3.0, 6), (6.0, 12)])
def test_bitrates(kbps, levels):
    assert load_codec("codec-tiny").config.quantizers_within(kbps) == levels


@torch.no_grad()
def test_its_language_model_gives_the_same_codes_back_on_any_number_of_threads():
    codec, model = load_codec("codec-tiny"), load_entropy("codec-tiny")
    time = torch.arange(22050 // 4) / 22050
    codes = codec.encode((0.3 * (2 * torch.pi * 220 * time).sin())[None, None], num_quantizers=3).audio_codes[0]
    data = block_coder(model, (1024,) * 3).encode(codes)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            assert torch.equal(block_coder(model, (1024,) * 3).decode(data, codes.shape[1]), codes)
    finally:
        torch.set_num_threads(threads)
