"""A training that was killed continues as if it had not been."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from training_utils import ADVERSARIAL, arguments, same_tensors

from melreformer_hf.training.checkpointing import list_checkpoints
from melreformer_hf.training.main import main
from melreformer_hf.training.recipes.vocoder import VocoderRecipe
from melreformer_hf.training.reporting import read_metrics

ROOT = Path(__file__).parents[2]


def losses(folder: Path) -> list[dict]:
    return [{key: value for key, value in line.items() if key != "minutes"} for line in read_metrics(folder)]


def run_until_killed(words: list[str], output: Path, lines: int) -> None:
    """Start the example in a process group of its own and kill all of it after `lines` logged steps."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, str(ROOT / "examples/train_vocoder.py"), *words]
    with open(output.with_suffix(".txt"), "wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    metrics, deadline = output / "metrics.jsonl", time.monotonic() + 240
    try:
        while not metrics.is_file() or len(metrics.read_text().splitlines()) < lines:
            assert process.poll() is None, output.with_suffix(".txt").read_text()[-2000:]
            assert time.monotonic() < deadline, "the training did not get that far"
            time.sleep(0.01)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_killed_training_resumes_to_the_bit(dataset, tmp_path):
    steps, kill_after = 14, 7
    more = ["--max_steps", steps, "--save_every_steps", 3, *ADVERSARIAL]
    more += ["--gradient_accumulation_steps", 2, "--ema_decay", 0.9, "--log_every_steps", 1]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    expected = main(VocoderRecipe, arguments(dataset, whole, *more))
    run_until_killed(arguments(dataset, killed, *more), killed, kill_after)
    at = list_checkpoints(killed)[-1].name
    assert 0 < int(at.removeprefix("step-")) < steps
    actual = main(VocoderRecipe, arguments(dataset, killed, *more, "--resume", "latest"))
    assert actual == expected, f"killed after {kill_after} steps, resumed at {at}"
    assert losses(killed) == losses(whole)
    assert "discriminator_loss" in losses(whole)[-1] and "discriminator_loss" not in losses(whole)[0]
    assert same_tensors(killed / "model.safetensors", whole / "model.safetensors")
    last = f"checkpoints/step-{steps:08d}"
    for name in ("model", "average", "discriminator"):
        assert same_tensors(killed / last / f"{name}.safetensors", whole / last / f"{name}.safetensors"), name
    one, two = (torch.load(folder / last / "optimizers.pt", weights_only=True) for folder in (killed, whole))
    for name in ("model", "discriminator"):
        for key, state in one[name]["state"].items():
            assert all(torch.equal(value, two[name]["state"][key][field]) for field, value in state.items())


def test_the_data_order_does_not_depend_on_workers(dataset, tmp_path):
    for workers in (0, 3):
        words = arguments(dataset, tmp_path / str(workers), "--max_steps", 4, "--num_workers", workers)
        main(VocoderRecipe, words)
    assert losses(tmp_path / "0") == losses(tmp_path / "3")
    assert len({line["loss"] for line in losses(tmp_path / "0")}) == 4


def test_folders_that_hold_a_training_are_not_overwritten(dataset, tmp_path, capsys):
    words = arguments(dataset, tmp_path / "run", "--max_steps", 1)
    main(VocoderRecipe, words)
    with pytest.raises(SystemExit):
        main(VocoderRecipe, words)
    assert "--resume latest" in capsys.readouterr().err


def test_what_was_after_an_earlier_checkpoint_is_dropped_when_it_is_continued(dataset, tmp_path, capsys):
    run, more = tmp_path / "run", ["--save_every_steps", 1, "--keep_checkpoints", 3]
    main(VocoderRecipe, arguments(dataset, run, "--max_steps", 3, *more))
    first = run / "checkpoints/step-00000001"
    words = arguments(dataset, run, "--max_steps", 2, *more, "--resume", first)
    main(VocoderRecipe, words)
    assert [path.name for path in list_checkpoints(run)] == ["step-00000001", "step-00000002"]
    assert [line["step"] for line in losses(run)] == [1, 2]
    elsewhere = tmp_path / "elsewhere"
    main(VocoderRecipe, arguments(dataset, elsewhere, "--max_steps", 2, *more, "--resume", first))
    assert losses(elsewhere)[-1] == losses(run)[-1]
    with pytest.raises(SystemExit):  # both hold a training: the one must not overwrite the other
        main(VocoderRecipe, arguments(dataset, elsewhere, "--max_steps", 2, *more, "--resume", first))
    assert "holds a training already" in capsys.readouterr().err


def test_resuming_refuses_what_does_not_fit(dataset, tmp_path, capsys):
    words = arguments(dataset, tmp_path / "run", "--max_steps", 1)
    main(VocoderRecipe, words)
    cases = [
        (["--model.hidden_size", "8"], "do not fit"),
        (["--seed", "5"], "seed"),
        (["--resume", str(tmp_path)], "checkpoint folder"),
        (ADVERSARIAL, "no weights of 'discriminator'"),
    ]
    for more, message in cases:
        with pytest.raises(SystemExit):
            main(VocoderRecipe, [*words, "--resume", "latest", *more])
        assert message in capsys.readouterr().err


def test_checkpoints_are_complete_and_bounded(dataset, tmp_path):
    run = tmp_path / "run"
    main(VocoderRecipe, arguments(dataset, run, "--max_steps", 5, "--save_every_steps", 1, "--keep_checkpoints", 2))
    kept = [path.name for path in (run / "checkpoints").iterdir()]
    assert sorted(kept) == ["step-00000004", "step-00000005"]
    assert not [path for path in run.rglob("*partial*")]
    assert not [path for path in run.rglob("*.pkl")]
