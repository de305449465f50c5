"""The listening benchmark: its tables on a small checkpoint, and that statistics tell what is like real music."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from melreformer_hf.processing.midi.notes import MidiNote, notes_to_midi, write_midi

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "listening.py"


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        specification = importlib.util.spec_from_file_location("benchmark_listening", SCRIPT)
        module = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(module)
    finally:
        sys.path.remove(str(SCRIPT.parent))
    return module


def piece(start: int, step: int = 20, count: int = 10) -> list[MidiNote]:
    return [MidiNote(step * index, step, start + (5 * index) % 24, 0, 80) for index in range(count)]


def test_statistics_are_told_beside_the_distance_of_real_pieces_from_each_other(script, capsys):
    real = [piece(50 + index, 18 + index % 3) for index in range(12)]
    sources = {
        script.REAL: real,
        "like it": real[:6],
        "far from it": [piece(60, 2, 90)] * 6,
        "mostly silent": [real[0], []],
    }
    found = script.statistics_table(sources, 2.0)
    floor, told = found["real to real"], capsys.readouterr().out
    assert found["like it"]["distances"]["density"] <= 1.5 * floor["density"]
    assert found["far from it"]["distances"]["density"] > 10 * floor["density"]
    assert found[script.REAL]["distances"] == floor and found["mostly silent"]["excerpts"] == 1
    assert found["far from it"]["means"]["density"] == pytest.approx(45)
    assert "| mostly silent | 1 of 2 |" in told


def test_both_tables_and_pictures(script, tmp_path, capsys):
    midi = tmp_path / "midi"
    midi.mkdir()
    for index in range(4):
        write_midi(notes_to_midi(piece(50 + 3 * index, 20 + index)), midi / f"{index}.mid")
    (midi / "metadata.csv").write_text("file_name,split\n" + "".join(f"{index}.mid,test\n" for index in range(4)))
    words = ["--midi", midi, "--count", 4, "--seconds", 2, "--threads", torch.get_num_threads()]
    words += ["--output", tmp_path / "numbers.json", "--pictures", tmp_path / "pictures"]
    script.main([str(word) for word in words])
    numbers, told = json.loads((tmp_path / "numbers.json").read_text()), capsys.readouterr().out
    # The bundled ear hears simple chords, by the sampled piano and by the bundled performer.
    assert numbers["performed"]["sampled piano"]["onset_f1"] > 0.7 and 0.7 < numbers["performed"]["ratio"] < 1.4
    assert numbers["music"]["statistics"][script.COMPOSED]["excerpts"] >= 1
    assert all(numbers["music"]["frechet"][name]["distance"] > 0 for name in script.FOUNDING.values())
    assert "4 pieces of split 'test'" in told and "| performer and vocoder |" in told
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 12
