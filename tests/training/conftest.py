"""A small built dataset and the settings of trainings that take seconds."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import soundfile
import torch
from accelerate.state import AcceleratorState

from melreformer_hf.data.building import BuildConfig, build_dataset

RATE = 22050


def _tune(seed: int, seconds: float) -> np.ndarray:
    """Decaying tones at random times: music enough to have a spectrum that changes."""
    random = np.random.default_rng(seed)
    samples = np.zeros(int(seconds * RATE))
    for _ in range(int(seconds * 3)):
        start = int(random.integers(samples.size - RATE // 2))
        time = np.arange(min(RATE, samples.size - start)) / RATE
        pitch = 110.0 * 2 ** (random.integers(36) / 12)
        tone = sum(np.sin(2 * np.pi * pitch * k * time) / k**2 for k in (1, 2, 3))
        samples[start : start + time.size] += 0.1 * np.exp(-4 * time) * tone
    return samples + 1e-4 * random.standard_normal(samples.size)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory) -> str:
    """Folder of a built dataset: three recordings to train on, two to validate, two to test."""
    root = tmp_path_factory.mktemp("training_data")
    (root / "wav").mkdir()
    rows = [("one", "train", 9), ("two", "train", 14), ("three", "train", 6), ("four", "test", 8), ("five", "test", 7)]
    rows += [("six", "validation", 8), ("seven", "validation", 7)]
    with open(root / "wav" / "metadata.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "split"])
        for seed, (name, split, seconds) in enumerate(rows):
            soundfile.write(root / "wav" / f"{name}.wav", _tune(seed, seconds), RATE, subtype="PCM_16")
            writer.writerow([f"{name}.wav", split])
    build_dataset(root / "wav", root / "built", BuildConfig(workers=1), progress=False)
    return str(root / "built")


@pytest.fixture(autouse=True)
def fresh_process():
    """Each test trains as a process of its own would.

    Sums of different numbers of threads differ in the last bit, so every process uses one; Accelerate's state, which
    lives as long as a process, is reset.
    """
    AcceleratorState._reset_state(reset_partial_state=True)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
