"""The benchmark of edits measures what it names."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from melreformer_hf.processing.midi.notes import MidiNote

PATH = Path(__file__).parents[2] / "benchmarks" / "editing.py"


@pytest.fixture(scope="module")
def editing():
    spec = importlib.util.spec_from_file_location("editing_benchmark", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pitch_classes_are_weighted_by_duration(editing):
    notes = [MidiNote(0, 40, 60, 0, 80), MidiNote(0, 9000, 72 + 7, 0, 80), MidiNote(0, None, 62, 0, 80)]
    ear = SimpleNamespace(sampling_rate=22050, transcribe=lambda audio, rate: SimpleNamespace(notes=notes))
    found = editing.pitch_classes(ear, torch.zeros(1))
    expected = np.zeros(12)
    expected[[0, 7, 2]] = 40, 300, 50
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected))
    notes.clear()
    assert not editing.pitch_classes(ear, torch.zeros(1)).any()


def test_a_seam_is_a_change_that_is_larger_than_those_near_it(editing):
    torch.manual_seed(0)
    mel = torch.randn(16, 400)
    assert editing.seam(mel, 200) == pytest.approx(1.0, abs=0.2)
    stepped = mel.clone()
    stepped[:, 200:] += 20.0
    assert editing.seam(stepped, 200) > 2.5 and editing.seam(stepped, 100) < 1.2


def test_levels_are_decibels(editing):
    assert editing.level(torch.full((10,), 0.1)) == pytest.approx(-20.0, abs=1e-3)
