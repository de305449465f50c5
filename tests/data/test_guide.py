"""The guide to data is true: its code runs as it is printed, its commands and options exist."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from melreformer_hf.cli.main import app
from melreformer_hf.data.building import BuildConfig, build_dataset
from melreformer_hf.data.tokenizing import TokenizeConfig, tokenize_folder
from melreformer_hf.processing.midi.notes import MidiNote, midi_bytes, notes_to_midi

GUIDE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")


def test_the_code_runs_as_printed(tmp_path, monkeypatch, capsys):
    random = np.random.default_rng(0)
    (tmp_path / "wav").mkdir()
    (tmp_path / "midi").mkdir()
    for index in range(3):
        noise = 0.1 * random.standard_normal((11 * 22050, 1))
        soundfile.write(tmp_path / "wav" / f"{index}.wav", noise, 22050)
        notes = [MidiNote(11 * i, 10, int(random.integers(40, 80)), 0, 64) for i in range(400)]
        (tmp_path / "midi" / f"{index}.mid").write_bytes(midi_bytes(notes_to_midi(notes)))
    build_dataset(tmp_path / "wav", tmp_path / "data/mine", BuildConfig(), progress=False)
    tokenize_folder(tmp_path / "midi", tmp_path / "tokens/mine", TokenizeConfig(by_piece=True), progress=False)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", GUIDE, re.S)
    assert len(blocks) == 4
    names: dict = {}
    for block in blocks:
        exec(compile(block, "docs/data.md", "exec"), names)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["0", "1", "2"] and names["state"]["position"] == 3
    assert names["batch"].tensors["waveform_mask"].shape[0] == 4 and names["item"]["input_ids"].ndim == 1


@pytest.mark.parametrize("command", ["build", "render", "tokenize"])
def test_commands_have_the_options_that_the_guide_names(command):
    text = CliRunner().invoke(app, ["data", command, "--help"], terminal_width=300, env={"COLUMNS": "300"}).output
    lines = [line for line in GUIDE.splitlines() if line.startswith(f"melreformer data {command}")]
    assert lines
    options = {option for line in lines for option in re.findall(r"--[a-z-]+", line)}
    if command == "build":
        options |= set(re.findall(r"^\| `(--[a-z-]+)`", GUIDE.split("## Datasets of")[0], re.M)) | {
            "--test-fraction",
            "--overwrite",
        }
    if command == "tokenize":
        options |= {"--by-piece", "--label"}
    assert options and all(option in text for option in options), options
