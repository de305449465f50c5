"""The benchmark of MIDI tokens: round trips that hold and that do not, and a time for every tokenizer."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from melreformer_hf.processing.midi.notes import MidiNote, notes_to_midi, write_midi

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "midi.py"
# Overlaps of one pitch, drums, 40 s of a note, a piece of more than 100 s.
NOTES = [
    MidiNote(0, 60, 60, 0, 64),
    MidiNote(30, 80, 60, 0, 64),
    MidiNote(31, 5, 38, 128, 64),
    MidiNote(40, 4000, 50, 12, 64),
    MidiNote(12_000, 20, 60, 0, 64),
]


@pytest.fixture(scope="module")
def script():
    specification = importlib.util.spec_from_file_location("benchmark_midi", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path):
    write_midi(notes_to_midi(NOTES), tmp_path / "a.mid")
    return tmp_path


def run(script, monkeypatch, capsys, *words) -> dict:
    monkeypatch.setattr(sys, "argv", ["midi.py", *map(str, words)])
    script.main()
    return json.loads(capsys.readouterr().out)


def test_every_scheme_gives_the_notes_back(script, folder, monkeypatch, capsys):
    found = run(script, monkeypatch, capsys, folder, "--round-trips")
    schemes = {"arrival", "interarrival", "note_tuple", "attributes", "written file"}
    assert found == {"files": 1, "files that come back": dict.fromkeys(schemes, 1), "others": {}}


def test_a_scheme_that_loses_notes_is_told(script, folder, monkeypatch, capsys):
    whole = script.notes_to_events
    monkeypatch.setattr(script, "notes_to_events", lambda notes: (whole(notes)[0][3:], 0))
    assert run(script, monkeypatch, capsys, folder, "--round-trips")["others"] == {"arrival": ["a.mid"]}


def test_every_tokenizer_is_timed(script, folder, monkeypatch, capsys):
    found = run(script, monkeypatch, capsys, folder)
    assert found["files"] == 1 and found["notes"] == len(NOTES)
    assert {"ours: interarrival", "ours: arrival"} <= found["processor seconds"].keys()
