"""The benchmark of sounds: its classifier, its gaps, its tables."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from sounds_for_tests import tiny_sound_parts, write_sounds

from melreformer_hf.data.building import BuildConfig, build_dataset
from melreformer_hf.pipelines.pipeline_token_generation import TokenGenerationPipeline

PLACE = Path(__file__).parents[2] / "benchmarks" / "sounds.py"


@pytest.fixture(scope="module")
def sounds():
    spec = importlib.util.spec_from_file_location("sounds_benchmark", PLACE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_classifier_finds_what_tells_classes_apart(sounds):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(120) % 3
    features = torch.randn(120, 5, generator=generator) * torch.tensor([1.0, 100.0, 1.0, 1.0, 0.01])
    features[:, 4] += 0.03 * labels
    judge = sounds.LinearClassifier(features[:90], labels[:90], 3)
    assert judge.accuracy(features[90:], labels[90:]) > 0.8
    assert judge.accuracy(features[90:], (labels[90:] + 1) % 3) < 0.2


def test_a_patch_is_the_one_whose_borders_fit(sounds):
    generator = torch.Generator().manual_seed(0)
    training = torch.randn(3, 4, 60, generator=generator)
    mel = torch.randn(4, 60, generator=generator)
    mel[:, 12:20], mel[:, 26:34] = training[1, :, 20:28], training[1, :, 34:42]
    torch.testing.assert_close(sounds.best_patch(mel, 20, 26, training), training[1, :, 28:34])


def test_spread_is_within_classes(sounds):
    features = torch.tensor([[0.0], [2.0], [100.0], [104.0]])
    assert sounds.spread(features, torch.tensor([0, 0, 1, 1])) == 3.0


def test_tables_of_a_tiny_checkpoint(sounds, tmp_path, capsys):
    folder = write_sounds(tmp_path / "raw")
    build_dataset(folder, tmp_path / "built", BuildConfig(workers=1, label="folder"), progress=False)
    TokenGenerationPipeline(**tiny_sound_parts(vae=False)).save_pretrained(tmp_path / "pipe")
    words = ["--dataset", tmp_path / "built", "--checkpoint", tmp_path / "pipe", "--count", 2, "--gap", 0.05]
    sounds.main([str(word) for word in words])
    told = capsys.readouterr().out
    for fragment in (
        "4 sounds of 'validation', 24 crops",
        "| share of it |",
        "| real, held out |",
        "| drawn, guidance 2 |",
    ):
        assert fragment in told
    for fragment in ("| nats, knowing both sides |", "| log-mel L1, best patch |", "| 64 tokens without a cache |"):
        assert fragment in told
    (real,) = [line for line in told.splitlines() if "real, held out" in line]
    assert [float(cell) for cell in real.split("|")[4:5]] == [1.0]
