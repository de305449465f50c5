"""The one training loop: Accelerate underneath, recipes on top."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from accelerate.utils import set_seed
from torch.utils.data import DataLoader

from melreformer_hf._text import duration_in_words
from melreformer_hf.data.batches import BatchStream
from melreformer_hf.training import checkpointing
from melreformer_hf.training.accelerator import make_accelerator
from melreformer_hf.training.cards import told_settings, training_card
from melreformer_hf.training.config import TrainingConfig
from melreformer_hf.training.interruption import Interruption, PatientWorkers, TrainingInterrupted
from melreformer_hf.training.progress import Clock
from melreformer_hf.training.recipes.base import Recipe
from melreformer_hf.training.reporting import Display, TrainingLog
from melreformer_hf.training.state import TrainingState
from melreformer_hf.training.updates import Updater
from melreformer_hf.training.validation import run_validation


class Trainer:
    """One training run.

    Args:
        recipe: what is trained and how it is measured.
        config: for how long, how fast, where to.

    Raises:
        ValueError: settings, data or the checkpoint to resume do not fit together; nothing has been trained yet.
    """

    def __init__(self, recipe: Recipe, config: TrainingConfig) -> None:
        self.recipe, self.config = recipe, config
        self.accelerator = make_accelerator(config)
        self.output_dir = Path(config.output_dir)
        self.is_main = self.accelerator.is_main_process
        set_seed(config.seed)
        self.state = TrainingState(recipe, config, self.accelerator)
        if self.is_main:
            recipe.prepare_validation()
        # What a recipe draws while training differs between processes; a checkpoint replaces it below.
        torch.manual_seed(config.seed + self.accelerator.process_index)
        self.resumed_from = self.state.resume()
        self.updater, self._workers = Updater(self.state), PatientWorkers()
        self.log = TrainingLog(self.output_dir, self.state.progress) if self.is_main else None

    def _loader(self) -> DataLoader:
        config = self.config
        return DataLoader(
            BatchStream(self.state.stream, self.recipe.prepare, config.batch_size),
            batch_size=None,
            num_workers=config.num_workers,
            prefetch_factor=config.prefetch_batches if config.num_workers else None,
            worker_init_fn=self._workers,
            pin_memory=self.accelerator.device.type == "cuda",
            # Its own generator: drawing the workers' seeds from the global one would make a resumed run differ.
            generator=torch.Generator().manual_seed(config.seed),
        )

    def run(self) -> dict[str, float]:
        """Train to the end, publish the model, and return the metrics of the last validation.

        Raises:
            TrainingInterrupted: Ctrl-C or SIGTERM; a checkpoint was saved.
            FloatingPointError: gradients were not finite too many steps in a row.
            OSError: the disk is full or cannot be written.
        """
        self.output_dir.mkdir(parents=True, exist_ok=True)
        progress = self.state.progress
        display = Display(self.recipe.name, self.config, progress, self.is_main)
        self._announce(display)
        try:
            with Interruption() as interruption:
                if progress.validation_due:  # the process ended in the middle of it
                    self._validate(display, self.resumed_from)
                self._train(display, interruption)
            self._publish(self.output_dir)
        finally:
            self._workers.close()
            display.close()
            if self.log is not None:
                self.log.close()
        self.accelerator.wait_for_everyone()
        return progress.metrics

    def _train(self, display: Display, interruption: Interruption) -> None:
        """Steps until the end of the training, with what is due after each."""
        state, progress, config = self.state, self.state.progress, self.config
        marks = {"validate": progress.minutes, "save": progress.minutes}
        clock = Clock(progress, config)
        batches = iter(self._loader())
        while state.share < 1.0:
            state.means.add(self.updater.step(batches))
            progress.minutes, stop = self._agree(clock.minutes(), interruption.signum)
            self._record(display)
            display.step(clock.minutes_left())
            progress.validation_due = progress.due("validate", config, marks) or state.share >= 1.0
            # Before a validation too: whatever happens in it, what was learned is safe.
            if progress.due("save", config, marks) or progress.validation_due or stop:
                checkpoint = state.save()
                marks["save"] = progress.minutes
            if stop:
                interrupted = TrainingInterrupted(stop, progress.step, checkpoint)
                display.say(str(interrupted))
                raise interrupted
            if progress.validation_due:
                self._validate(display, checkpoint)

    def _announce(self, display: Display) -> None:
        """Say what is about to happen, and what was asked for but is not there."""
        config, state = self.config, self.state
        if config.resume == "latest" and self.resumed_from is None:
            display.say(f"resume: {self.output_dir} has no checkpoint yet, the training starts at step 0")
        elif self.resumed_from is not None:
            display.say(f"resume: continuing {self.resumed_from} after {state.progress.step} steps")
        items = config.batch_size * config.gradient_accumulation_steps * self.accelerator.num_processes
        parts = [f"{name} {_millions(module)}" for name, module in state.modules.items()]
        lengths = [f"{config.max_steps} steps"] if config.max_steps else []
        lengths += [duration_in_words(config.max_minutes)] if config.max_minutes else []
        told = [", ".join(parts), self.recipe.describe_data(), f"{' or '.join(lengths)}, {items} items a step"]
        display.say(f"{self.recipe.name}: {'; '.join(text for text in told if text)}")

    def _agree(self, minutes: float, signum: int | None) -> tuple[float, int]:
        # Clocks differ between processes, and signals reach them at different steps: all follow the first one's clock,
        # and stop as soon as one was asked to.
        if self.accelerator.num_processes == 1:
            return minutes, signum or 0
        # Whole milliseconds: integers are exact on devices without float64, too.
        own = [round(minutes * 60_000) if self.is_main else 0, signum or 0]
        gathered = self.accelerator.gather(torch.tensor([own], device=self.accelerator.device))
        return gathered[:, 0].sum().item() / 60_000, int(gathered[:, 1].max().item())

    def _record(self, display: Display) -> None:
        progress = self.state.progress
        if progress.step % self.config.log_every_steps:
            return
        means = self.state.means.take(lambda values: self.accelerator.reduce(values, reduction="mean"))
        display.losses(means)
        if self.log is not None:
            rate = self.state.optimizers["model"].param_groups[0]["lr"]
            self.log.scalars({**means, "learning_rate": rate}, progress.step, progress.minutes)

    def _validate(self, display: Display, checkpoint: Path) -> None:
        """Measure the averaged model in the first process, keep it if it is the best, and note that it is done."""
        progress = self.state.progress
        model = self.state.average.gathered()
        if self.log is not None:
            result = run_validation(self.recipe, model, self.config.seed)
            self.log.validation(result, progress.step, progress.minutes)
            display.validation(result)
            progress.metrics, progress.validated_step = dict(result.metrics), progress.step
            if progress.improve(result.metrics[self.recipe.best_metric], self.recipe.greater_is_better):
                self._publish(self.output_dir / "best")
        progress.validation_due = False
        # One of another folder, from which this training was continued, is not this training's to change.
        if self.is_main and checkpoint.resolve().is_relative_to(self.output_dir.resolve()):
            checkpointing.update_state(checkpoint, progress=dataclasses.asdict(progress))
        self.accelerator.wait_for_everyone()

    def _publish(self, folder: Path) -> None:
        """Save the averaged model with its card and `training.json`."""
        if not self.is_main:
            return
        progress = self.state.progress
        summary = {
            "recipe": self.recipe.name,
            "step": progress.step,
            "minutes": round(progress.minutes, 2),
            "processes": self.accelerator.num_processes,
            "metrics": progress.metrics,
            "best": progress.best,
            "config": told_settings(self.config),
        }
        card = training_card(summary, self.recipe.describe_data())
        extra = {"training.json": summary}
        checkpointing.save_model(self.state.average.model, folder, extra, card, self.recipe.save_beside)


def _millions(module: torch.nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in module.parameters()) / 1e6:.2f} M parameters"


def train(recipe: Recipe, config: TrainingConfig) -> dict[str, float]:
    """Train a recipe to the end of its steps or minutes.

    `config.output_dir` receives the averaged model (`save_pretrained`), `training.json`, `best` (the best model by the
    recipe's metric), `checkpoints`, `logs` (TensorBoard) and `metrics.jsonl`.

    Returns:
        metrics of the last validation.
    """
    return Trainer(recipe, config).run()


__all__ = ["Trainer", "train"]
