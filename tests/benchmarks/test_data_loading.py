"""The benchmark of data loading prints a whole table of a small dataset."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
from audio_files import write_music

from melreformer_hf.data.building import BuildConfig, build_dataset

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "data_loading.py"


@pytest.fixture
def script():
    specification = importlib.util.spec_from_file_location("benchmark_data_loading", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_every_reader_is_measured_in_every_epoch(script, tmp_path, monkeypatch, capsys):
    write_music(tmp_path / "music", count=3)
    config = BuildConfig(workers=1, test_fraction=0.0, validation_fraction=0.0)
    build_dataset(tmp_path / "music", tmp_path / "built", config, progress=False)
    words = ["data_loading.py", "--dataset", str(tmp_path / "built"), "--crop-seconds", "0.5", "--epochs", "2"]
    monkeypatch.setattr(sys, "argv", words)
    script.main()
    head, *rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert "epoch 2, s" in head and len(rows) == 4
    for row in rows:
        _, *cells = row.strip("| ").split("|")
        numbers = [[float(number) for number in cell.replace("(", " ").replace(")", " ").split()] for cell in cells]
        assert [len(cell) for cell in numbers] == [2, 2, 1, 2]  # two epochs, speed, first over later
        assert all(number >= 0 for cell in numbers for number in cell) and all(cell[0] > 0 for cell in numbers)


def test_wrong_settings_are_refused(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["data_loading.py", "--dataset", "x", "--epochs", "1"])
    with pytest.raises(SystemExit):
        script.main()
    assert "--epochs must be at least 2" in capsys.readouterr().err
