"""The ear's benchmark: what its damage does, and that it prints a score for every piano and every degree of damage."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from melreformer_hf.audio.sampler import BUNDLED_PIANO
from melreformer_hf.models.note_ear.configuration_note_ear import NoteEarConfig
from melreformer_hf.models.note_ear.modeling_note_ear import NoteEarModel
from melreformer_hf.nn.sounding import SoundingNotes
from melreformer_hf.processing.midi.notes import MidiNote, notes_to_midi, write_midi

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "ear.py"


@pytest.fixture(scope="module")
def script():
    specification = importlib.util.spec_from_file_location("benchmark_ear", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_wrong_notes_are_near_and_so_many(script):
    pitch = np.full(2000, 60)
    notes = SoundingNotes(np.arange(2000.0), np.arange(2000.0) + 1, pitch, pitch)
    away = script.wrong_notes(notes, 0.3).pitch - 60
    assert set(np.abs(away)) == set(range(7)) and 0.26 < (away != 0).mean() < 0.34
    assert not (script.wrong_notes(notes, 0.0).pitch - 60).any()


def test_a_blur_spreads_and_keeps_the_sum_and_a_stretch_is_longer(script):
    mel = torch.zeros(1, 3, 40)
    mel[0, :, 20] = 9.0
    made = script.blurred(mel, 9)
    assert made[0, 0].nonzero().flatten().tolist() == list(range(16, 25)) and made.sum().item() == pytest.approx(27)
    assert script.stretched(mel, 1.1).shape == (1, 3, 44)


def test_every_piano_and_every_damage_is_scored(script, tmp_path, monkeypatch, capsys):
    midi = tmp_path / "midi"
    midi.mkdir()
    for piece in range(8):
        notes = [MidiNote(20 * index, 15, 55 + (5 * index + piece) % 24, 0, 80) for index in range(10)]
        write_midi(notes_to_midi(notes), midi / f"{piece}.mid")
    rows = ["file_name,split", *(f"{piece}.mid,test" for piece in range(8))]
    (midi / "metadata.csv").write_text("\n".join(rows) + "\n")
    NoteEarModel(NoteEarConfig.preset("test")).save_pretrained(tmp_path / "ear")
    words = ["--model", tmp_path / "ear", "--midi", midi, "--soundfont", f"ours={BUNDLED_PIANO}", "--pieces", 8]
    words += ["--seconds", 1, "--damage", 1, "--output", tmp_path / "numbers.json"]
    monkeypatch.setattr(sys, "argv", ["ear.py", *map(str, words)])
    script.main()
    told = json.loads((tmp_path / "numbers.json").read_text())
    assert told["scores"]["ours"]["pieces"] == 8 and told["scores"]["ours"]["onset_f1"] == 0  # nobody taught it
    assert list(told["damage"]) == ["blur", "noise", "wrong notes", "stretch"]
    assert all(len(degrees) == 4 for degrees in told["damage"].values()) and len(told["frechet"]) == 3
    assert "NOT in order" in capsys.readouterr().out
