"""The one training loop: Accelerate underneath, recipes on top."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from accelerate.utils import broadcast, set_seed
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from melreformer_hf.training import checkpointing
from melreformer_hf.training.accelerator import make_accelerator
from melreformer_hf.training.cards import training_card
from melreformer_hf.training.config import TrainingConfig
from melreformer_hf.training.logging import TrainingLog
from melreformer_hf.training.progress import is_timed
from melreformer_hf.training.recipes.base import BatchStream, Recipe
from melreformer_hf.training.state import TrainingState
from melreformer_hf.training.updates import Updater
from melreformer_hf.training.validation import run_validation


class Trainer:
    """One training run.

    Args:
        recipe: what is trained and how it is measured.
        config: for how long, how fast, where to.
    """

    def __init__(self, recipe: Recipe, config: TrainingConfig) -> None:
        self.recipe, self.config = recipe, config
        self.accelerator = make_accelerator(config)
        self.output_dir = Path(config.output_dir)
        set_seed(config.seed)
        self.state = TrainingState(recipe, config, self.accelerator)
        # What a recipe draws while training differs between processes; a checkpoint replaces it below.
        torch.manual_seed(config.seed + self.accelerator.process_index)
        self.state.resume()
        self.updater = Updater(self.state)
        self.log: TrainingLog | None = None  # only the main process has one
        if self.accelerator.is_main_process:
            rate = self.state.stream.store.sampling_rate
            self.log = TrainingLog(self.output_dir, self.state.progress.step, rate)

    def _loader(self) -> DataLoader:
        config = self.config
        return DataLoader(
            BatchStream(self.recipe, self.state.stream, config.batch_size),
            batch_size=None,
            num_workers=config.num_workers,
            prefetch_factor=config.prefetch_batches if config.num_workers else None,
            pin_memory=self.accelerator.device.type == "cuda",
            # Its own generator: drawing the workers' seeds from the global one would make a resumed run differ.
            generator=torch.Generator().manual_seed(config.seed),
        )

    def run(self) -> dict[str, float]:
        """Train to the end, publish the model, and return the metrics of the last validation."""
        self.output_dir.mkdir(parents=True, exist_ok=True)
        state, progress, config = self.state, self.state.progress, self.config
        batches = iter(self._loader())
        shown = config.progress_bar and self.accelerator.is_main_process
        bar = tqdm(total=config.max_steps, initial=progress.step, desc=self.recipe.name, disable=not shown)
        before, started = progress.minutes, time.monotonic()
        marks = {"validate": progress.minutes, "save": progress.minutes}
        metrics, measured_at, saved_at = {}, None, None
        while state.share < 1.0:
            scalars = self.updater.step(batches)
            progress.minutes = self._agreed(before + (time.monotonic() - started) / 60)
            self._record(scalars, bar)
            if progress.due("validate", config, marks):
                metrics, measured_at = self._validate(), progress.step
            if progress.due("save", config, marks):
                state.save()
                saved_at = progress.step
        if measured_at != progress.step:
            metrics = self._validate()
        if saved_at != progress.step:
            state.save()
        bar.close()
        self._finish(metrics)
        return metrics

    def _finish(self, metrics: dict[str, float]) -> None:
        if self.log is not None:
            self._publish(self.output_dir, metrics)
            self.log.close()
        self.accelerator.wait_for_everyone()

    def _agreed(self, minutes: float) -> float:
        # The clocks of processes differ; where anything depends on them all follow the first one's.
        if self.accelerator.num_processes == 1 or not is_timed(self.config):
            return minutes
        return float(broadcast(torch.tensor([minutes], dtype=torch.float64, device=self.accelerator.device)).item())

    def _record(self, scalars: dict[str, torch.Tensor], bar: tqdm) -> None:
        progress = self.state.progress
        bar.update()
        mean = self.accelerator.reduce({name: value.clone() for name, value in scalars.items()}, reduction="mean")
        progress.add({name: value.item() for name, value in mean.items()})
        if progress.step % self.config.log_every_steps:
            return
        means = progress.take_means()
        if self.log is not None:
            rate = self.state.optimizers["model"].param_groups[0]["lr"]
            self.log.scalars({**means, "learning_rate": rate}, progress.step, progress.minutes)
            short = {name: f"{value:.4g}" for name, value in means.items() if "/" not in name}
            bar.set_postfix({**short, "done": f"{100 * self.state.share:.1f}%"}, refresh=False)

    def _validate(self) -> dict[str, float]:
        self.accelerator.wait_for_everyone()
        metrics: dict[str, float] = {}
        if self.log is not None:
            progress = self.state.progress
            result = run_validation(self.recipe, self.state.average.model, self.config.seed)
            metrics = result.metrics
            self.log.validation(result, progress.step, progress.minutes)
            line = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
            tqdm.write(f"step {progress.step}, {progress.minutes:.1f} min: {line}", file=sys.stderr)
            if progress.improve(metrics[self.recipe.best_metric]):
                self._publish(self.output_dir / "best", metrics)
        self.accelerator.wait_for_everyone()
        return metrics

    def _publish(self, folder: Path, metrics: dict[str, float]) -> None:
        """Save the averaged model with its card and `training.json`."""
        progress = self.state.progress
        summary = {
            "recipe": self.recipe.name,
            "step": progress.step,
            "minutes": round(progress.minutes, 2),
            "processes": self.accelerator.num_processes,
            "metrics": metrics,
            "best": progress.best,
            "config": self.config.to_dict(),
        }
        card = training_card(summary, getattr(self.state.stream.store, "hours", None))
        checkpointing.save_model(self.state.average.model, folder, {"training.json": summary}, card)


def train(recipe: Recipe, config: TrainingConfig) -> dict[str, float]:
    """Train a recipe to the end of its steps or minutes.

    `config.output_dir` receives the averaged model (`save_pretrained`), `training.json`, `best` (the best model by the
    recipe's metric), `checkpoints`, `logs` (TensorBoard) and `metrics.jsonl`.

    Returns:
        metrics of the last validation.
    """
    return Trainer(recipe, config).run()


__all__ = ["Trainer", "train"]
