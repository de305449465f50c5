"""The documented commands as they are typed: `accelerate launch examples/train_<recipe>.py`, in one process and in two."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import HubServer, Repository, StoredFile
from safetensors.torch import load_file
from training_utils import COLUMNS, GAN, VOCODER

from melreformer_hf.training.main import main
from melreformer_hf.training.reporting import read_metrics

ROOT = Path(__file__).parents[2]

SHORT = """--max_minutes none --max_steps 2 --batch_size 2 --log_every_steps 1 --warmup_steps 1 --progress_bar false --cpu true
--validate_every_minutes none --save_every_minutes none --mixed_precision no""".split()
WINDOWS = """--options.min_frames 128 --options.max_frames 512 --options.window_frames 32 --options.windows_per_crop 1
--options.validation_crops 1 --options.validation_crop_frames 128 --options.validation_pieces 1
--model.idea_columns 32 --model.hidden_size 16 --model.intermediate_size 24""".split()
SIZES = {
    "vocoder": VOCODER,
    "expansion": [*WINDOWS, *"--model.num_attention_heads 2 --model.postnet_size 8".split()],
    "conv_upsampler": WINDOWS,
    "idea_diffusion": COLUMNS,
    "idea_gan": GAN,
}
ACCELERATE = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
TWO_PROCESSES = [*ACCELERATE, "--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
TWO_PROCESSES += ["--dynamo_backend", "no", "--main_process_port", "0"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def launch(launcher: list[str], name: str, dataset: str, output: Path, *more: str, **variables: str) -> dict:
    """Run an example with its tiny configuration, made tinier; returns its `training.json`."""
    command = [*launcher, "-m", "melreformer_hf.training", name, "--config", "tiny"]
    command += ["--dataset", dataset, "--output_dir", str(output), *SIZES[name], *SHORT, *more]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **variables}
    result = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    written = output / "training.json"  # gloo sometimes aborts while it shuts down; the results decide
    assert written.is_file(), result.stderr[-3000:]
    return json.loads(written.read_text())


def test_every_example_has_its_tiny_configuration():
    examples = {path.stem.removeprefix("train_") for path in (ROOT / "examples").glob("train_*.py")}
    configs = {path.stem.removesuffix("_tiny") for path in (ROOT / "melreformer_hf/configs").glob("*_tiny.yaml")}
    assert set(SIZES) <= examples and examples == configs


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_accelerate_launches_every_recipe(name, dataset, tmp_path):
    summary = launch([*ACCELERATE, "--cpu", "--num_processes", "1"], name, dataset, tmp_path / "run")
    assert summary["recipe"] == name and summary["step"] == 2 and summary["processes"] == 1
    assert summary["config"]["dataset"] == Path(dataset).name and summary["metrics"]
    assert next((tmp_path / "run").glob("*.safetensors")).stat().st_size > 1000
    card = (tmp_path / "run" / "README.md").read_text()
    assert f"Recipe `{name}`" in card and all(f"| {metric} |" in card for metric in summary["metrics"])


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["accelerate", "torchrun"])
def test_two_processes_are_launched_as_the_guide_says(launcher, dataset, tmp_path):
    command = TWO_PROCESSES if launcher == "accelerate" else TORCHRUN
    summary = launch(command, "vocoder", dataset, tmp_path / "two", ACCELERATE_USE_CPU="true")
    assert summary["processes"] == 2 and summary["step"] == 2
    one = launch([sys.executable], "vocoder", dataset, tmp_path / "one", "--batch_size", "4")
    assert one["processes"] == 1
    first, second = (read_metrics(tmp_path / name)[0]["loss"] for name in ("one", "two"))
    assert second == pytest.approx(first, rel=1e-5)


def test_a_recipe_trains_in_two_processes_as_in_one(dataset, tmp_path):
    two = launch(TORCHRUN, "expansion", dataset, tmp_path / "two", ACCELERATE_USE_CPU="true")
    words = ["--dataset", dataset, "--output_dir", tmp_path / "one", *SIZES["expansion"], *SHORT, "--batch_size", "4"]
    main("expansion", ["--config", "tiny", *words])
    assert (two["processes"], two["step"]) == (2, 2)
    for first, second in zip(*(read_metrics(tmp_path / folder) for folder in ("one", "two")), strict=True):
        assert second["loss"] == pytest.approx(first["loss"], rel=1e-3), first["step"]


# The discriminator of ideas sees how a process's batch spreads: two halves are no whole.
@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SIZES if name not in ("vocoder", "idea_gan")])
def test_every_recipe_trains_in_two_processes(name, dataset, tmp_path):
    two = launch(TWO_PROCESSES, name, dataset, tmp_path / "two", ACCELERATE_USE_CPU="true")
    one = launch([sys.executable], name, dataset, tmp_path / "one", "--batch_size", "4")
    assert (one["processes"], two["processes"], two["step"]) == (1, 2, 2)
    lines = [read_metrics(tmp_path / folder) for folder in ("one", "two")]
    for first, second in zip(*lines, strict=True):
        assert second["loss"] == pytest.approx(first["loss"], rel=1e-3), first["step"]


@pytest.mark.slow
def test_a_training_streams_its_data_from_the_hub(dataset, tmp_path):
    with HubServer() as hub:
        repository = Repository("datasets", "user/music", False)
        files = {path.relative_to(dataset).as_posix(): path for path in Path(dataset).rglob("*") if path.is_file()}
        stored = {name: StoredFile(path.read_bytes(), path.suffix == ".parquet") for name, path in files.items()}
        repository.branches["main"] = repository.commit(stored, "add")
        hub.repositories["datasets", "user/music"] = repository
        for name, source in (("streamed", "hf://datasets/user/music"), ("downloaded", "user/music")):
            launch(ACCELERATE, "vocoder", source, tmp_path / name, **hub.environment(tmp_path / f"home-{name}"))
        launch(ACCELERATE, "vocoder", dataset, tmp_path / "local")
        assert not list((tmp_path / "home-streamed").rglob("*.parquet"))
        assert hub.requests("GET", "train-00000.parquet")
    local = load_file(tmp_path / "local/model.safetensors")
    for name in ("streamed", "downloaded"):
        weights = load_file(tmp_path / name / "model.safetensors")
        assert all(weights[key].equal(local[key]) for key in local), name
