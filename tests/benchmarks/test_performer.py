"""The performer's benchmark: what it takes out of the model, and that it measures quality and speed of a small one."""

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
from melreformer_hf.data.performances import NOTES_FILE, write_notes
from melreformer_hf.models.note_performer.configuration_note_performer import NotePerformerConfig
from melreformer_hf.models.note_performer.modeling_note_performer import NotePerformerModel
from melreformer_hf.nn.sounding import SoundingNotes

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "performer.py"


@pytest.fixture(scope="module")
def script():
    specification = importlib.util.spec_from_file_location("benchmark_performer", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def model():
    torch.manual_seed(0)
    return NotePerformerModel(NotePerformerConfig.preset("test")).eval()


def chord(seconds: float = 0.5) -> SoundingNotes:
    return SoundingNotes(np.array([0.1, 0.2]), np.full(2, seconds), np.array([50, 66]), np.array([60, 100]))


def test_parts_are_taken_out_and_put_back(script, model):
    whole, frames = model.perform(chord(), 60), 60
    with script.without(model, "correction") as changed:
        plain = changed.perform(chord(), frames)
        with script.without(model, "room"):
            dry = model.perform(chord(), frames)
    assert torch.equal(model.perform(chord(), frames), whole)
    assert (plain - whole).abs().max() > 1e-4 and (plain >= dry - 1e-6).all() and (plain - dry).max() > 1e-4


def test_a_stream_is_told_half_a_second_more_each_time(script):
    assert [until for _, until in script.snapshots(chord(), 100)] == [43, 86, 100]
    assert [until for _, until in script.snapshots(chord(), 86)] == [43, 86]


def test_it_prints_quality_and_speed(script, model, tmp_path, monkeypatch, capsys):
    random, notes = np.random.default_rng(0), {}
    (tmp_path / "wav").mkdir()
    for index in range(3):
        soundfile.write(tmp_path / "wav" / f"{index}.wav", 0.1 * random.standard_normal(61 * 22050), 22050)
        notes[str(index)] = chord(1.0)
    build_dataset(tmp_path / "wav", tmp_path / "data", BuildConfig(), progress=False)
    write_notes(tmp_path / "data" / NOTES_FILE, notes)
    model.save_pretrained(tmp_path / "model")
    words = ["--model", tmp_path / "model", "--dataset", tmp_path / "data", "--frames", 100, "--repeats", 1]
    words += ["--threads", torch.get_num_threads(), "--output", tmp_path / "numbers.json"]
    monkeypatch.setattr(sys, "argv", ["performer.py", *map(str, words)])
    script.main()
    told, numbers = capsys.readouterr().out, json.loads((tmp_path / "numbers.json").read_text())
    assert "1 pieces of split 'test'" in told and "| notes alone |" in told
    assert numbers["quality"]["performer"]["mel_l1"] > 0 and numbers["speed"]["performer, streamed"] > 0
