"""The separation benchmark: its ideal masks are ideal, and every method is scored."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from melreformer_hf.data.building import BuildConfig, build_dataset
from melreformer_hf.metrics import si_sdr
from melreformer_hf.models.band_split_separator.configuration_band_split_separator import BandSplitSeparatorConfig
from melreformer_hf.models.band_split_separator.modeling_band_split_separator import BandSplitSeparatorModel

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "separation.py"


@pytest.fixture(scope="module")
def script():
    specification = importlib.util.spec_from_file_location("benchmark_separation", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def sources(samples: int = 22050) -> torch.Tensor:
    time = torch.arange(samples) / 22050
    voice = sum(torch.sin(2 * torch.pi * 220 * k * time + 3 * torch.sin(2 * torch.pi * 5 * time)) for k in (1, 2, 3))
    noise = torch.randn(samples, generator=torch.Generator().manual_seed(0))
    return torch.stack([0.1 * voice, 0.1 * noise])


def test_ideal_masks_know_the_stems(script):
    pair = sources()
    base = si_sdr(pair.sum(0), pair[0])
    ratio, bounded = (si_sdr(method(pair), pair[0]) for method in (script.ideal_ratio, script.ideal_bounded))
    assert ratio > base + 8 and bounded > ratio
    alone = torch.stack([pair[0], torch.zeros_like(pair[0])])
    torch.testing.assert_close(script.ideal_ratio(alone), pair[0], rtol=0, atol=1e-4)


def test_scores_are_of_both_stems(script):
    pair = sources(66150)
    found = script.scores(pair[0] + 0.1 * pair[1], pair, 22050)
    expected = 10 * np.log10((pair[0].square().sum() / (0.01 * pair[1].square().sum())).item())
    assert found["vocals SDR"] == pytest.approx(expected, abs=1e-3)
    assert found["instrumental SDR"] == pytest.approx(20 * np.log10(10), abs=0.3 + abs(expected - 20))
    assert found["vocals median SDR"] == pytest.approx(expected, abs=0.5)


@pytest.mark.slow  # librosa compiles
def test_every_method_is_scored(script, tmp_path, monkeypatch, capsys):
    pytest.importorskip("librosa")
    for kind, index in (("voices", 0), ("band", 1)):
        (tmp_path / kind).mkdir()
        for name in ("a", "b", "c"):
            soundfile.write(tmp_path / kind / f"{name}.wav", sources(80000)[index].numpy(), 22050)
        build_dataset(tmp_path / kind, tmp_path / f"{kind}_built", BuildConfig(workers=1), progress=False)
    torch.manual_seed(0)
    BandSplitSeparatorModel(BandSplitSeparatorConfig.preset("test", hop_length=32)).save_pretrained(tmp_path / "model")
    words = [
        "--checkpoint",
        tmp_path / "model",
        "--voices",
        tmp_path / "voices_built",
        "--band",
        tmp_path / "band_built",
    ]
    words += ["--count", 1, "--seconds", 3, "--output", tmp_path / "numbers.json"]
    monkeypatch.setattr(sys, "argv", ["separation.py", *map(str, words)])
    script.main()
    numbers, printed = json.loads((tmp_path / "numbers.json").read_text()), capsys.readouterr().out
    names = ["mixture", "HPSS", "REPET-SIM", str(tmp_path / "model"), "ideal ratio mask"]
    assert list(numbers) == [*names, "ideal mask within the unit circle"]
    assert all(f"| {name} |" in printed for name in numbers)
    assert numbers["mixture"]["vocals SI-SDR"] == pytest.approx(0.0, abs=0.5)
    assert numbers["mixture"]["instrumental SI-SDR"] == pytest.approx(0.0, abs=0.5)
    assert numbers["HPSS"]["vocals SI-SDR"] > numbers["mixture"]["vocals SI-SDR"]
