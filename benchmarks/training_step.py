"""What the training loop costs beside a plain PyTorch loop, and how long it waits for data.

    python benchmarks/training_step.py --threads 2 --steps 60

The plain loop does what a training has to do and nothing else: forward, backward, clipping, AdamW, the moving average of
the weights, and one line of losses every 20 steps. Both train the same model on the same batches, step by step in turn,
so that other work on the machine slows both alike. Waiting is measured with worker processes that read a dataset.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import soundfile
import torch

from melreformer_hf.configs import find_config
from melreformer_hf.data.batches import Batch, BatchStream
from melreformer_hf.data.building import BuildConfig, build_dataset
from melreformer_hf.training.config import TrainingConfig
from melreformer_hf.training.ema import WeightAverage
from melreformer_hf.training.loop import Trainer
from melreformer_hf.training.optimizers import (
    OptimizerSettings,
    build_optimizer,
    learning_rate_factor,
    set_learning_rate,
)
from melreformer_hf.training.recipes import RECIPES, find_recipe
from melreformer_hf.training.recipes.base import Recipe, StepContext

RATE = 22050
LOG_EVERY = 20
WARM_UP = 3


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--recipe", default="vocoder", choices=sorted(RECIPES), help="what is trained (default: vocoder)"
    )
    parser.add_argument("--config", default="tiny", help="its config (default: tiny)")
    parser.add_argument("--dataset", help="folder made by `melreformer data build`; default: noise of two minutes")
    parser.add_argument("--steps", type=int, default=60, help="steps of either loop (default: 60)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--workers", type=int, default=1, help="processes that prepare batches (default: 1)")
    parser.add_argument("--batch-size", type=int, default=8, help="items per batch (default: 8)")
    parser.add_argument("--cpu", action="store_true", help="although there is an accelerator")
    arguments = parser.parse_args()
    for name in ("steps", "threads", "workers", "batch_size"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    return arguments


def build_noise(folder: Path) -> str:
    """A dataset of four recordings of noise with a changing level."""
    random = np.random.default_rng(0)
    (folder / "wav").mkdir()
    for number in range(4):
        level = 0.2 * np.abs(np.sin(np.arange(30 * RATE) / RATE * (number + 1)))
        soundfile.write(folder / "wav" / f"{number}.wav", level * random.standard_normal(level.size), RATE)
    build_dataset(folder / "wav", folder / "built", BuildConfig(workers=1), progress=False)
    return str(folder / "built")


def settings(arguments: argparse.Namespace, dataset: str, output: Path) -> TrainingConfig:
    """Settings of either loop: no validation and no checkpoint before the end."""
    overrides = {
        "dataset": dataset,
        "output_dir": str(output),
        "max_steps": arguments.steps + WARM_UP,
        "max_minutes": None,
        "batch_size": arguments.batch_size,
        "num_workers": arguments.workers,
        "mixed_precision": "no",
        "optimizer": "adamw",
        "log_every_steps": LOG_EVERY,
        "validate_every_steps": None,
        "validate_every_minutes": None,
        "save_every_minutes": None,
        "cpu": arguments.cpu,
    }
    return TrainingConfig.from_yaml(find_config(arguments.config, arguments.recipe), overrides)


def plain_loop(recipe: Recipe, config: TrainingConfig, device: torch.device) -> Callable[[Batch], None]:
    """One step of the plain loop, on a model of its own."""
    torch.manual_seed(config.seed)
    trainables = recipe.trainables()
    recipe.modules = {name: trainable.module.to(device).train() for name, trainable in trainables.items()}
    average = WeightAverage(recipe.modules["model"], config.ema_decay)
    optimizers = {
        name: build_optimizer(recipe.modules[name], OptimizerSettings().completed(config)) for name in trainables
    }
    steps = 0

    def step(batch: Batch) -> None:
        nonlocal steps
        factor = learning_rate_factor(steps, steps / config.max_steps, config)
        context = StepContext(steps, 0, 1, steps / config.max_steps, torch.Generator().manual_seed(steps))
        for phase in recipe.phases(batch.to(device).tensors, context):
            phase.loss.backward()
            module, optimizer = recipe.modules[phase.module], optimizers[phase.module]
            torch.nn.utils.clip_grad_norm_(module.parameters(), config.max_grad_norm)
            set_learning_rate(optimizer, factor)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        steps += 1
        average.update(recipe.modules["model"], steps)
        if steps % LOG_EVERY == 0:
            print(f"plain loop, step {steps}: loss {phase.loss.item():.4f}", file=sys.stderr)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


class InTurn:
    """Hands batches to the trainer; before each of them the plain loop takes its step on the same batch.

    Args:
        batches: the batches.
        plain: the plain loop's step.
        device: where both compute.
    """

    def __init__(self, batches: list[Batch], plain: Callable[[Batch], None], device: torch.device) -> None:
        self.batches, self.plain, self.device = batches, plain, device
        self.plain_seconds: list[float] = []
        self.our_seconds: list[float] = []

    def __iter__(self) -> Iterator[Batch]:
        while True:
            for batch in self.batches:
                started = time.perf_counter()
                self.plain(batch)
                handed = time.perf_counter()
                self.plain_seconds.append(handed - started)
                yield batch  # until the trainer asks again: all that its loop does in a step
                if self.device.type == "cuda":
                    torch.cuda.synchronize()
                self.our_seconds.append(time.perf_counter() - handed)


class Waiting:
    """Measures how long each batch of a loader was waited for."""

    def __init__(self, loader: torch.utils.data.DataLoader) -> None:
        self.loader, self.waited, self.arrived = loader, [], []

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(self.loader)
        while True:
            started = time.perf_counter()
            batch = next(batches)
            self.waited.append(time.perf_counter() - started)
            self.arrived.append(time.perf_counter())
            yield batch


def measure_overhead(arguments: argparse.Namespace, config: TrainingConfig) -> dict[str, float]:
    """Median milliseconds of a step of either loop, and the median of what ours takes more."""
    recipe_class = find_recipe(arguments.recipe)
    trainer = Trainer(recipe_class(config), config)
    stream = BatchStream(trainer.state.stream, trainer.recipe.prepare, config.batch_size)
    device = trainer.accelerator.device
    batches = [stream.batch(number) for number in range(8)]
    turns = InTurn(batches, plain_loop(recipe_class(config), config, device), device)
    trainer._loader = lambda: turns
    trainer.run()
    ours, plain = (seconds[WARM_UP : len(turns.our_seconds)] for seconds in (turns.our_seconds, turns.plain_seconds))
    ratios = [one / two for one, two in zip(ours, plain, strict=True)]
    return {
        "plain_ms": 1000 * statistics.median(plain),
        "ours_ms": 1000 * statistics.median(ours),
        "overhead_percent": 100 * (statistics.median(ratios) - 1),
        "overhead_of_the_sum_percent": 100 * (sum(ours) / sum(plain) - 1),
    }


def measure_waiting(arguments: argparse.Namespace, config: TrainingConfig) -> float:
    """Percent of the time, after the first steps, in which the loop waits for batches."""
    trainer = Trainer(find_recipe(arguments.recipe)(config), config)
    waiting = Waiting(trainer._loader())
    trainer._loader = lambda: waiting
    trainer.run()
    return 100 * sum(waiting.waited[WARM_UP + 1 :]) / (waiting.arrived[-1] - waiting.arrived[WARM_UP])


def main() -> None:
    arguments = read_arguments()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        dataset = arguments.dataset or build_noise(Path(folder))
        overhead = measure_overhead(arguments, settings(arguments, dataset, Path(folder) / "overhead"))
        waiting = measure_waiting(arguments, settings(arguments, dataset, Path(folder) / "waiting"))
    print(
        f"{arguments.recipe}/{arguments.config}, batch {arguments.batch_size}, {arguments.steps} steps, "
        f"{arguments.threads} threads, {arguments.workers} workers, {platform.machine()}, torch {torch.__version__}"
    )
    print("| quantity | value |\n|---|---|")
    for name, value in {**overhead, "waiting_for_data_percent": waiting}.items():
        print(f"| {name} | {value:.2f} |")


if __name__ == "__main__":
    main()
