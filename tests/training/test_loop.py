"""The loop: schedule, accumulation, guards, averaging, several processes."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from training_utils import arguments, same_tensors

from melreformer_hf.models.hifi_vocoder.modeling_hifi_vocoder import HifiVocoderModel
from melreformer_hf.training import accelerator
from melreformer_hf.training.accelerator import make_accelerator
from melreformer_hf.training.config import TrainingConfig
from melreformer_hf.training.ema import WeightAverage
from melreformer_hf.training.loop import Trainer
from melreformer_hf.training.main import main
from melreformer_hf.training.optimizers import OptimizerSettings, build_optimizer, learning_rate_factor
from melreformer_hf.training.recipes.base import Phase
from melreformer_hf.training.recipes.vocoder import VocoderRecipe
from melreformer_hf.training.reporting import read_metrics

# With the usual epsilon AdamW divides rounding errors by rounding errors where gradients vanish.
SMOOTH = ["--adam_epsilon", 1e-3]
ROOT = Path(__file__).parents[2]


def assert_close(line: dict, expected: dict, *names: str) -> None:
    """Equal up to the order of sums in the first two steps; rounding grows tenfold and more in each step after that."""
    tolerance = 1e-4 if line["step"] <= 2 else 5e-2
    for name in names:
        assert line[name] == pytest.approx(expected[name], rel=tolerance), (line["step"], name)


def settings(**values) -> TrainingConfig:
    return TrainingConfig(**{"dataset": "d", "output_dir": "o", "max_steps": 10, **values})


def test_the_schedule_warms_up_and_ends_at_its_floor():
    config = settings(warmup_steps=4, final_learning_rate_ratio=0.1)
    assert [learning_rate_factor(step, 0.0, config) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert learning_rate_factor(100, 0.5, config) == pytest.approx(0.55)
    assert learning_rate_factor(100, 1.0, config) == pytest.approx(0.1)


def test_only_matrices_decay():
    optimizer = build_optimizer(torch.nn.Linear(3, 4), OptimizerSettings().completed(settings(weight_decay=0.3)))
    decays = {group["params"][0].ndim: group["weight_decay"] for group in optimizer.param_groups}
    assert decays == {2: 0.3, 1: 0.0}


def test_the_average_follows_the_weights():
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    average = WeightAverage(model, 0.5)
    torch.nn.init.ones_(model.weight)
    expected = 0.0
    for step in range(1, 8):
        average.update(model, step)
        keep = min(0.5, (1 + step) / (10 + step))
        expected = keep * expected + (1 - keep)
        assert average.model.weight.item() == pytest.approx(expected)
    assert not average.model.weight.requires_grad


def test_a_minute_budget_ends_the_training_with_the_learning_rate_at_zero(dataset, tmp_path):
    words = arguments(
        dataset, tmp_path / "run", "--max_minutes", 0.03, "--num_workers", 0, "--mixed_precision", "bf16"
    )
    main(VocoderRecipe, words)
    rates = [line["learning_rate"] for line in read_metrics(tmp_path / "run")]
    assert len(rates) > 5 and max(rates) > 0.0015 and rates[-1] < 0.2 * max(rates)
    state = json.loads((tmp_path / "run" / "training.json").read_text())
    assert state["minutes"] >= 0.03 and state["step"] == len(rates)


def test_the_results_are_a_model_and_its_history(dataset, tmp_path):
    run = tmp_path / "run"
    metrics = main(VocoderRecipe, arguments(dataset, run, "--max_steps", 3, "--validate_every_steps", 1))
    assert read_metrics(run, "validation")[-1]["mel_l1"] == metrics["mel_l1"]
    assert [line["step"] for line in read_metrics(run, "validation")] == [1, 2, 3]
    assert HifiVocoderModel.from_pretrained(run).config.hidden_size == 16
    assert same_tensors(run / "model.safetensors", run / "checkpoints/step-00000003/average.safetensors")
    best = json.loads((run / "best" / "training.json").read_text())
    scores = [line["score"] for line in read_metrics(run, "validation")]
    assert best["metrics"]["score"] == min(scores)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "logs"))
    events.Reload()
    assert {"train/loss", "validation/score"} <= set(events.Tags()["scalars"])
    assert events.Tags()["images"] == ["true_over_synthesized"]
    assert set(events.Tags()["audio"]) == {"true", "synthesized"}


def test_accumulated_batches_equal_one_large_batch(dataset, tmp_path):
    shared = ["--max_steps", 3, "--num_workers", 0, "--options.mel_weight", 1.0, "--options.stft_weight", 0.0, *SMOOTH]
    main(VocoderRecipe, arguments(dataset, tmp_path / "one", *shared, "--batch_size", 4))
    more = ["--batch_size", 2, "--gradient_accumulation_steps", 2]
    main(VocoderRecipe, arguments(dataset, tmp_path / "two", *shared, *more))
    for one, two in zip(read_metrics(tmp_path / "one"), read_metrics(tmp_path / "two"), strict=True):
        assert_close(two, one, "loss", "gradient_norm/model")


def test_training_can_start_from_a_pretrained_model(dataset, tmp_path):
    main(VocoderRecipe, arguments(dataset, tmp_path / "a", "--max_steps", 2, "--ema_decay", 0))
    words = arguments(dataset, tmp_path / "b", "--max_steps", 1, "--init_from", tmp_path / "a")
    trainer = Trainer(VocoderRecipe(config := TrainingConfig.from_command_line(VocoderRecipe, words)), config)
    start = HifiVocoderModel.from_pretrained(tmp_path / "a")
    for name, value in start.state_dict().items():
        assert torch.equal(trainer.state.modules["model"].state_dict()[name], value), name
        assert torch.equal(trainer.state.average.model.state_dict()[name], value), name
    trainer.log.close()


class BrokenRecipe(VocoderRecipe):
    """Gradients that are not finite from the second step on."""

    calls = 0

    def phases(self, batch, context):
        for phase in super().phases(batch, context):
            self.calls += 1
            yield phase if self.calls == 1 else Phase(phase.module, phase.loss * math.inf, phase.scalars)


def test_infinite_gradients_are_skipped_and_then_reported(dataset, tmp_path):
    words = arguments(dataset, tmp_path / "run", "--max_steps", 9, "--num_workers", 0, "--max_nonfinite_steps", 3)
    config = TrainingConfig.from_command_line(VocoderRecipe, words)
    trainer = Trainer(BrokenRecipe(config), config)
    with pytest.raises(FloatingPointError, match="3 steps in a row .* in step 4.*learning_rate"):
        trainer.run()
    assert all(parameter.isfinite().all() for parameter in trainer.state.modules["model"].parameters())
    trainer.log.close()


class OverflowingRecipe(VocoderRecipe):
    """Gradients that overflow in the first step, as fp16 begins with too large a scale."""

    calls = 0

    def phases(self, batch, context):
        for phase in super().phases(batch, context):
            self.calls += 1
            yield phase if self.calls > 1 else Phase(phase.module, phase.loss * math.inf, phase.scalars)


def _scaled_trainer(dataset: str, run: Path, *more: str) -> Trainer:
    words = arguments(dataset, run, "--max_steps", 2, "--num_workers", 0, "--log_every_steps", 5, *more)
    config = TrainingConfig.from_command_line(VocoderRecipe, words)
    trainer = Trainer(OverflowingRecipe(config), config)
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    return trainer


def test_overflows_lower_the_scale_of_fp16_which_is_saved(dataset, tmp_path):
    trainer = _scaled_trainer(dataset, tmp_path / "run")
    before = {name: value.clone() for name, value in trainer.state.modules["model"].state_dict().items()}
    batches = iter(trainer._loader())
    trainer.updater.step(batches)
    assert trainer.accelerator.scaler.get_scale() == 512.0 and trainer.state.progress.bad_steps == 1
    assert all(value.equal(before[name]) for name, value in trainer.state.modules["model"].state_dict().items())
    trainer.updater.step(batches)
    assert trainer.state.progress.bad_steps == 0
    assert any(not value.equal(before[name]) for name, value in trainer.state.modules["model"].state_dict().items())
    trainer.state.save()
    trainer.log.close()
    again = _scaled_trainer(dataset, tmp_path / "run", "--resume", "latest")
    again.state.resume()
    assert again.accelerator.scaler.get_scale() == 512.0
    again.log.close()


def test_half_precision_on_cpus_is_refused():
    with pytest.raises(ValueError, match="bf16.*fp16"):
        make_accelerator(settings(mixed_precision="fp16", cpu=True))


def test_processes_that_do_not_find_each_other_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(accelerator, "Accelerator", lambda **_: SimpleNamespace(num_processes=1))
    with pytest.raises(ValueError, match="WORLD_SIZE.*ACCELERATE_USE_CPU"):
        make_accelerator(settings(cpu=True))


def _two_processes(words: list[str]) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(ROOT / "examples/train_vocoder.py"), *words]
    subprocess.run(command, env=environment, capture_output=True, timeout=300, check=False)


def test_two_processes_equal_one_at_the_same_global_batch(dataset, tmp_path):
    shared = ["--max_steps", 4, "--options.stft_weight", 0.0, "--save_every_steps", 2, *SMOOTH]
    shared += ["--options.adversarial_weight", 0.1, "--options.discriminators", "mrd"]
    shared += ["--options.discriminator_size", 4, "--options.adversarial_start", 0.4]
    main(VocoderRecipe, arguments(dataset, tmp_path / "one", *shared, "--batch_size", 4))
    for attempt in range(2):  # gloo sometimes aborts while it shuts down; the results decide
        _two_processes(arguments(dataset, tmp_path / f"two{attempt}", *shared, "--batch_size", 2))
        two = tmp_path / f"two{attempt}"
        if (two / "training.json").is_file():
            break
    assert json.loads((two / "training.json").read_text())["processes"] == 2
    one_lines, two_lines = read_metrics(tmp_path / "one"), read_metrics(two)
    assert len(one_lines) == len(two_lines) == 4
    for first, second in zip(one_lines, two_lines, strict=True):
        assert_close(second, first, "loss")
    for first, second in zip(one_lines[:2], two_lines[:2], strict=True):
        assert_close(second, first, "gradient_norm/model")  # near the floor of a log-mel, later ones are chaotic
    for first, second in zip(one_lines[2:], two_lines[2:], strict=True):
        assert_close(second, first, "discriminator_loss", "gradient_norm/discriminator")
    positions = [
        json.loads((folder / "checkpoints/step-00000004/state.json").read_text())["stream"]["position"]
        for folder in (tmp_path / "one", two)
    ]
    assert positions == [16, 16]
    # The checkpoint of two processes continues in one.
    words = arguments(dataset, two, *shared, "--batch_size", 4, "--max_steps", 5, "--resume", "latest")
    main(VocoderRecipe, words)
    assert read_metrics(two)[-1]["step"] == 5
