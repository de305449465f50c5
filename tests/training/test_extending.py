"""The guide's recipe, executed as it is printed: trained, killed, resumed to the bit, loaded."""

from __future__ import annotations

import os
import random
import re
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import mido
import pytest
from training_utils import same_tensors
from typer.testing import CliRunner

from melreformer_hf.cli.main import app
from melreformer_hf.training.checkpointing import list_checkpoints
from melreformer_hf.training.reporting import read_metrics

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)
STEPS = 8


def write_tune(path: Path, seed: int) -> None:
    """A melody that walks up and down a scale."""
    draw, track, pitch = random.Random(seed), mido.MidiTrack(), 60
    for _ in range(700):
        pitch = min(84, max(40, pitch + draw.choice((-4, -2, 2, 3))))
        track.append(mido.Message("note_on", note=pitch, velocity=64, time=0))
        track.append(mido.Message("note_off", note=pitch, velocity=0, time=draw.choice((120, 240))))
    file = mido.MidiFile()
    file.tracks.append(track)
    file.save(path)


@pytest.fixture(scope="module")
def printed(tmp_path_factory) -> Path:
    """Folder with the guide's script and the tokens that its first command makes."""
    folder = tmp_path_factory.mktemp("extending")
    (folder / "token_recipe.py").write_text(BLOCKS[0], encoding="utf-8")
    (folder / "midi").mkdir()
    for seed in range(12):
        write_tune(folder / "midi" / f"tune{seed}.mid", seed)
    words = ["data", "tokenize", str(folder / "midi"), "--output", str(folder / "tokens/mine"), "--by-piece"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    return folder


def words(folder: Path, output: str, *more: str) -> list[str]:
    words = f"--dataset {folder}/tokens/mine --output_dir {folder}/{output} --max_steps {STEPS} --save_every_steps 3"
    small = "--batch_size 2 --log_every_steps 1 --num_workers 0 --warmup_steps 2 --progress_bar false --cpu true"
    model = "--model.hidden_size 16 --model.num_hidden_layers 1 --options.num_tokens 24 --options.validation_rows 2"
    return [str(folder / "token_recipe.py"), *words.split(), *small.split(), *model.split(), *more]


def run(folder: Path, output: str, monkeypatch, *more: str) -> None:
    monkeypatch.setattr(sys, "argv", words(folder, output, *more))
    runpy.run_path(sys.argv[0], run_name="__main__")


def run_until_killed(folder: Path, output: str, lines: int) -> None:
    """In a process of its own, whose clock is in the way of nothing: killed after `lines` logged steps."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, *words(folder, output)]
    with open(folder / "log.txt", "wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    metrics, deadline = folder / output / "metrics.jsonl", time.monotonic() + 240
    try:
        while not metrics.is_file() or len(metrics.read_text().splitlines()) < lines:
            assert process.poll() is None, (folder / "log.txt").read_text()[-2000:]
            assert time.monotonic() < deadline, "the training did not get that far"
            time.sleep(0.005)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def losses(folder: Path) -> list[dict]:
    return [{**line, "minutes": 0} for line in read_metrics(folder)]


def test_the_printed_recipe_trains_is_killed_goes_on_and_loads(printed, monkeypatch, capsys):
    assert len(BLOCKS[0].splitlines()) <= 80
    run(printed, "whole", monkeypatch)
    run_until_killed(printed, "killed", lines=4)
    assert 0 < len(list_checkpoints(printed / "killed"))
    run(printed, "killed", monkeypatch, "--resume", "latest")
    assert losses(printed / "killed") == losses(printed / "whole") and len(losses(printed / "whole")) == STEPS
    assert same_tensors(printed / "killed/model.safetensors", printed / "whole/model.safetensors")
    last = f"checkpoints/step-{STEPS:08d}/average.safetensors"
    assert same_tensors(printed / "killed" / last, printed / "whole" / last)
    assert "x of counting how often each token comes" in capsys.readouterr().err
    monkeypatch.chdir(printed)
    loaded: dict = {}
    exec(BLOCKS[1].replace("runs/tokens", "whole"), loaded)
    assert loaded["model"].config.hidden_size == 16


def test_the_recipe_learns(printed, monkeypatch):
    run(printed, "learned", monkeypatch, "--max_steps", "30", "--learning_rate", "0.02", "--ema_decay", "0")
    lines = losses(printed / "learned")
    assert sum(line["loss"] for line in lines[-5:]) < 0.9 * sum(line["loss"] for line in lines[:5])
