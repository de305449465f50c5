"""The benchmark of music by way of notes: its numbers are there, for every length and seed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from midi_pipeline_for_tests import tiny_midi_pipeline

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "notes.py"


@pytest.fixture(scope="module")
def script():
    specification = importlib.util.spec_from_file_location("benchmark_notes", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("pipeline")
    tiny_midi_pipeline().save_pretrained(path)
    return path


def test_every_seed_has_its_numbers(script, folder, capsys):
    usual = torch.get_num_threads()
    try:
        script.main(["--one", "--checkpoint", str(folder), "--seconds", "2", "--seeds", "0", "1", "--threads", "2"])
    finally:
        torch.set_num_threads(usual)
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["seed"] for row in rows] == [0, 1]
    for row in rows:
        assert 0 < row["first"] <= row["total"] and row["ratio"] == pytest.approx(2 / row["total"], rel=0.02)
        assert row["notes_per_minute"] > 60 and row["ms_per_note"] > 0 and row["peak_mb"] > 50


def test_a_row_is_printed_per_length_and_seed(script, monkeypatch, capsys):
    def measured(arguments, seconds):
        numbers = {"first": 0.1, "total": 1.0, "ratio": seconds, "peak_mb": 500.0, "notes_per_minute": 400.0}
        return [{"seed": seed, "ms_per_note": 5.0, **numbers} for seed in arguments.seeds]

    monkeypatch.setattr(script, "run_one", measured)
    script.main(["--seconds", "10", "60", "--seeds", "3", "4"])
    lines = capsys.readouterr().out.splitlines()
    assert "2 threads, piano-tiny" in lines[0] and len(lines) == 7
    assert lines[-1] == "| 60 | 4 | 400 | 60.0 | 0.10 | 5.0 | 500 |"
