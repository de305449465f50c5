"""Datasets of other programs, never built: every recipe trains on them and resumes to the bit."""

from __future__ import annotations

import json

import numpy as np
import pytest
from foreign_datasets import encode, write_audiofolder, write_parquet, write_webdataset
from training_utils import ADVERSARIAL, assert_same_checkpoints, in_two_processes

from melreformer_hf.training.main import main
from tests.training.test_recipes import CASES, words

RATE = 16000
STEPS = 4


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Seven recordings of some seconds in each layout, at another rate than the models'."""
    root = tmp_path_factory.mktemp("foreign")
    random = np.random.default_rng(0)
    items = []
    for index in range(7):
        time = np.arange(int((4 + index % 3) * RATE)) / RATE
        melody = np.sin(2 * np.pi * 110 * 2 ** (np.floor(3 * time) % 12 / 12 + index / 7) * time)
        items.append((f"take{index}", encode(0.3 * melody + 1e-3 * random.standard_normal(time.size), RATE)))
    write_audiofolder(root / "audiofolder" / "train", items)
    return {
        "parquet": str(write_parquet(root / "parquet", items)),
        "audiofolder": str(root / "audiofolder"),
        "webdataset": str(write_webdataset(root / "webdataset", items)),
    }


def run(name: str, folder: str, output, *more) -> None:
    """Train without intermediate validations, which take most of the time of so short a training."""
    steps = ["--max_steps", STEPS, "--validate_every_steps", "none", "--save_every_steps", 2]
    main(CASES[name][0], words(name, folder, output, *steps, *more))


@pytest.mark.parametrize(
    ("name", "kind"),
    [*((name, "parquet") for name in sorted(CASES)), ("vocoder", "audiofolder"), ("vocoder", "webdataset")],
)
def test_every_recipe_trains_and_resumes(folders, tmp_path, name, kind):
    run(name, folders[kind], tmp_path / "whole", "--num_workers", 2)
    state = json.loads((tmp_path / "whole/checkpoints/step-00000002/state.json").read_text())
    assert state["stream"]["anchor"] and state["stream"]["position"] == 4
    resume = ["--resume", tmp_path / "whole/checkpoints/step-00000002", "--num_workers", 0]
    run(name, folders[kind], tmp_path / "resumed", *resume)
    assert_same_checkpoints(tmp_path / "whole", tmp_path / "resumed", STEPS)
    assert (tmp_path / "whole/model.safetensors").is_file() or (
        tmp_path / "whole/diffusion_pytorch_model.safetensors"
    ).is_file()


def test_two_processes_with_workers_and_a_discriminator_train_and_resume(folders, tmp_path):
    more = ["--num_workers", 2, "--gradient_accumulation_steps", 2, *ADVERSARIAL]
    in_two_processes(run, "vocoder", folders["parquet"], tmp_path / "whole", *more)
    resume = ["--resume", tmp_path / "whole/checkpoints/step-00000002", "--num_workers", 1]
    in_two_processes(run, "vocoder", folders["parquet"], tmp_path / "resumed", *more, *resume)
    assert_same_checkpoints(tmp_path / "whole", tmp_path / "resumed", STEPS)
