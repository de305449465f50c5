"""The benchmark of ideas as music: its tables on a small dataset, other models by folder, and what its judge tells apart."""

from __future__ import annotations

import csv
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from melreformer_hf import IdeaStyleGan2Config, IdeaStyleGan2Model, MelReformerPipeline
from melreformer_hf.data.building import BuildConfig, build_dataset

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "idea_music.py"
RATE = 22050


@pytest.fixture(scope="module")
def script():
    specification = importlib.util.spec_from_file_location("benchmark_idea_music", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def beats(seed: int, seconds: float) -> np.ndarray:
    random, time = np.random.default_rng(seed), np.arange(int(seconds * RATE)) / RATE
    samples = 1e-4 * random.standard_normal(time.size)
    for start in np.arange(0.1, seconds, 0.4):
        tone = np.sin(2 * np.pi * 220 * 2 ** (random.integers(24) / 12) * time)
        samples += np.where(time > start, 0.1 * np.exp(-6 * (time - start)) * tone, 0)
    return samples


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> str:
    root = tmp_path_factory.mktemp("idea_music")
    (root / "wav").mkdir()
    with open(root / "wav" / "metadata.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "split"])
        for seed in range(6):
            soundfile.write(root / "wav" / f"{seed}.wav", beats(seed, 7 + seed / 2), RATE, subtype="PCM_16")
            writer.writerow([f"{seed}.wav", "train" if seed < 2 else "validation"])
    build_dataset(root / "wav", root / "built", BuildConfig(workers=1), progress=False)
    return str(root / "built")


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_tables_rows_and_models_by_folder(script, dataset, tmp_path, capsys):
    torch.manual_seed(0)
    small = {"style_size": 16, "num_mapping_layers": 1, "channels": (16, 8, 8)}
    IdeaStyleGan2Model(IdeaStyleGan2Config(**small)).save_pretrained(tmp_path / "gan" / "idea")
    bundled = MelReformerPipeline.from_pretrained("piano-tiny")
    for name in ("idea", "scheduler"):
        getattr(bundled, name).save_pretrained(tmp_path / "unet" / name)
    words = ["--dataset", dataset, "--count", 4, "--seconds", 4.2, "--steps", 1, 2, "--training-ideas", 6]
    words += ["--durations", 8, "--min-frames", 128, "--max-frames", 256, "--whole-share", 0.5]
    words += ["--threads", torch.get_num_threads(), "--output", tmp_path / "numbers.json"]
    words += ["--idea", f"noise={tmp_path / 'gan'}", f"unet={tmp_path / 'unet'}"]
    script.main([str(word) for word in words])
    numbers, told = json.loads((tmp_path / "numbers.json").read_text()), capsys.readouterr().out
    rows = numbers["rows"]
    assert list(rows) == [script.REAL, script.EXPANDED, "noise", "unet, 1 steps", "unet, 2 steps"]
    assert rows[script.REAL]["distances"]["attack"] == 0 and rows[script.REAL]["frechet"][script.REAL] < 1e-6
    assert rows[script.REAL]["nearest"] == 1.0 and rows["noise"]["nearest"] > 1.0
    assert rows[script.EXPANDED]["frechet"][script.EXPANDED] < 1e-6 < rows[script.EXPANDED]["frechet"][script.REAL]
    assert rows["noise"]["distances"]["level"] > 3 * rows[script.EXPANDED]["distances"]["level"]
    assert 0 <= rows["unet, 1 steps"]["duration_ks"] <= 1 and "duration_ks" not in rows[script.REAL]
    assert rows["unet, 2 steps"]["seconds_per_idea"] > 0
    assert "4 pieces of 4.2 s of each kind, split 'validation', seed 0" in told and "| unet, 2 steps |" in told


def test_copies_are_found_whatever_their_details(script):
    generator = torch.Generator().manual_seed(0)
    known, others = (torch.randn(20, 128, 256, generator=generator) for _ in range(2))
    copy = known[:5] + 0.1 * torch.randn(5, 128, 256, generator=generator)
    distance = script.nearest_neighbor_distance
    far = distance(script.small(others), script.small(known))
    assert distance(script.small(copy), script.small(known)).max() < far.min() / 4


def test_too_few_pieces_are_refused(script, capsys):
    with pytest.raises(SystemExit):
        script.read_arguments(["--dataset", "x", "--count", "3"])
    assert "--count must be at least 4" in capsys.readouterr().err
