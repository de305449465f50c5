"""The one training loop: Accelerate underneath, recipes on top."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, set_seed
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from melreformer_hf.training import checkpointing
from melreformer_hf.training.cards import training_card
from melreformer_hf.training.config import TrainingConfig
from melreformer_hf.training.ema import WeightAverage
from melreformer_hf.training.logging import TrainingLog
from melreformer_hf.training.optimizers import build_optimizer, learning_rate_factor, set_learning_rate
from melreformer_hf.training.progress import Progress, is_timed
from melreformer_hf.training.recipes.base import BatchStream, Recipe
from melreformer_hf.training.validation import run_validation

Batch = dict[str, torch.Tensor]


def make_accelerator(config: TrainingConfig) -> Accelerator:
    """The Accelerator of a run.

    Raises:
        ValueError: fp16 on a CPU, or launched processes that did not find each other.
    """
    cpu = config.cpu or not torch.accelerator.is_available()
    if cpu and config.mixed_precision == "fp16":
        raise ValueError(
            "mixed_precision must be no or bf16 on a CPU, got fp16, which is about a hundred times slower there."
        )
    accelerator = Accelerator(cpu=cpu, mixed_precision=config.mixed_precision)
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != launched:
        raise ValueError(
            f"{launched} processes were launched (WORLD_SIZE) but {accelerator.num_processes} found each other: each "
            "would train alone. On CPUs set ACCELERATE_USE_CPU=true in the environment."
        )
    return accelerator


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
        plain = recipe.modules()
        if config.init_from is not None:
            start = type(plain["model"]).from_pretrained(config.init_from)
            plain["model"].load_state_dict(start.state_dict())
        self.average = WeightAverage(plain["model"].to(self.accelerator.device), config.ema_decay)
        self.modules = {name: self.accelerator.prepare_model(module.train()) for name, module in plain.items()}
        self.plain = {name: self.accelerator.unwrap_model(module) for name, module in self.modules.items()}
        rates = {name: config.learning_rate for name in plain}
        rates |= {
            name: config.discriminator_learning_rate or config.learning_rate for name in plain if name != "model"
        }
        self.optimizers = {
            name: self.accelerator.prepare_optimizer(build_optimizer(self.plain[name], rates[name], config))
            for name in plain
        }
        self.progress = Progress()
        self.stream = recipe.stream(self.accelerator.process_index, self.accelerator.num_processes)
        # What a recipe draws while training differs between processes; a checkpoint replaces it below.
        torch.manual_seed(config.seed + self.accelerator.process_index)
        self._resume()
        self.log = (
            TrainingLog(self.output_dir, self.progress.step, self.stream.store.sampling_rate)
            if self.accelerator.is_main_process
            else None
        )

    @property
    def share(self) -> float:
        """Share of the training that is done, 0..1, in steps or minutes, whichever ends it first."""
        return self.progress.share(self.config)

    def _saved_modules(self) -> dict[str, nn.Module]:
        return {**self.plain, "average": self.average.model}

    def _resume(self) -> None:
        if self.config.resume is None:
            if checkpointing.list_checkpoints(self.output_dir):
                raise ValueError(
                    f"output_dir {self.output_dir} holds a training already. Continue it with --resume latest, or "
                    "choose another folder."
                )
            return
        path = checkpointing.find_checkpoint(self.config.resume, self.output_dir)
        if path is None:
            return
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        optimizers = {name: optimizer.optimizer for name, optimizer in self.optimizers.items()}
        state = checkpointing.load_checkpoint(path, self._saved_modules(), optimizers, rank=rank)
        if state["recipe"] != self.recipe.name:
            raise ValueError(f"{path} belongs to the recipe {state['recipe']!r}, this one is {self.recipe.name!r}.")
        position, remainder = divmod(state["stream"]["position"], world)
        if remainder:
            raise ValueError(
                f"The training stopped after {state['stream']['position']} items, which {world} processes cannot share "
                "equally; resume with a number of processes that divides it."
            )
        self.stream.load_state_dict({**state["stream"], "position": position})
        self.progress = Progress(**state["progress"])

    def _loader(self) -> DataLoader:
        config = self.config
        return DataLoader(
            BatchStream(self.recipe, self.stream, config.batch_size),
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
        batches = iter(self._loader())
        shown = self.config.progress_bar and self.accelerator.is_main_process
        bar = tqdm(total=self.config.max_steps, initial=self.progress.step, desc=self.recipe.name, disable=not shown)
        before, started = self.progress.minutes, time.monotonic()
        marks = {"validate": self.progress.minutes, "save": self.progress.minutes}
        metrics, measured_at, saved_at = {}, None, None
        while self.share < 1.0:
            scalars = self._step(batches)
            self.progress.minutes = self._agreed(before + (time.monotonic() - started) / 60)
            step = self.progress.step
            self._record(scalars, bar)
            if self.progress.due("validate", self.config, marks):
                metrics, measured_at = self._validate(), step
            if self.progress.due("save", self.config, marks):
                self._save()
                saved_at = step
        if measured_at != self.progress.step:
            metrics = self._validate()
        if saved_at != self.progress.step:
            self._save()
        bar.close()
        if self.log is not None:
            self._publish(self.output_dir, metrics)
            self.log.close()
        self.accelerator.wait_for_everyone()
        return metrics

    def _agreed(self, minutes: float) -> float:
        # The clocks of processes differ; all follow the first one's.
        if self.accelerator.num_processes == 1 or self.config.max_steps and not is_timed(self.config):
            return minutes
        return float(broadcast(torch.tensor([minutes], dtype=torch.float64, device=self.accelerator.device)).item())

    def _step(self, batches: Iterator[Batch]) -> dict[str, torch.Tensor]:
        accumulation = self.config.gradient_accumulation_steps
        factor = learning_rate_factor(self.progress.step, self.share, self.config)
        scalars: dict[str, torch.Tensor] = {}
        for index in range(accumulation):
            batch = {key: value.to(self.accelerator.device, non_blocking=True) for key, value in next(batches).items()}
            last = index == accumulation - 1
            with contextlib.ExitStack() as stack:
                for module in [] if last else self.modules.values():
                    stack.enter_context(self.accelerator.no_sync(module))
                for phase in self.recipe.phases(self.modules, batch, self.share):
                    self.accelerator.backward(phase.loss / accumulation)
                    if last:
                        scalars[f"gradient_norm/{phase.module}"] = self._update(phase.module, factor)
                    for name, value in phase.scalars.items():
                        scalars[name] = scalars.get(name, 0.0) + value.detach().float() / accumulation
        self.progress.step += 1
        self.average.update(self.plain["model"], self.progress.step)
        self.stream.position += accumulation * self.config.batch_size
        return scalars

    def _update(self, name: str, factor: float) -> torch.Tensor:
        optimizer = self.optimizers[name]
        norm = self.accelerator.clip_grad_norm_(self.plain[name].parameters(), self.config.max_grad_norm)
        if math.isfinite(norm.item()):
            set_learning_rate(optimizer.optimizer, factor)
            optimizer.step()
            self.progress.bad_updates = 0
        else:
            self.progress.bad_updates += 1
            if self.progress.bad_updates >= self.config.max_nonfinite_steps:
                raise FloatingPointError(
                    f"{self.progress.bad_updates} updates in a row had gradients that are not finite (the last of "
                    f"{name!r} after step {self.progress.step}). Lower learning_rate or max_grad_norm, train with "
                    "mixed_precision=no, or look at the data; the last checkpoint is untouched."
                )
        optimizer.zero_grad(set_to_none=True)
        return norm.detach()

    def _record(self, scalars: dict[str, torch.Tensor], bar: tqdm) -> None:
        progress, every = self.progress, self.config.log_every_steps
        bar.update()
        mean = self.accelerator.reduce({name: value.clone() for name, value in scalars.items()}, reduction="mean")
        progress.add({name: value.item() for name, value in mean.items()})
        if progress.step % every:
            return
        means = progress.take_means()
        if self.log is not None:
            rate = self.optimizers["model"].param_groups[0]["lr"]
            self.log.scalars({**means, "learning_rate": rate}, progress.step, progress.minutes)
            short = {name: f"{value:.4g}" for name, value in means.items() if "/" not in name}
            bar.set_postfix({**short, "done": f"{100 * self.share:.1f}%"}, refresh=False)

    def _validate(self) -> dict[str, float]:
        self.accelerator.wait_for_everyone()
        metrics: dict[str, float] = {}
        if self.log is not None:
            result = run_validation(self.recipe, self.average.model, self.config.seed)
            metrics = result.metrics
            self.log.validation(result, self.progress.step, self.progress.minutes)
            line = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
            tqdm.write(f"step {self.progress.step}, {self.progress.minutes:.1f} min: {line}", file=sys.stderr)
            if self.progress.improve(metrics[self.recipe.best_metric]):
                self._publish(self.output_dir / "best", metrics)
        self.accelerator.wait_for_everyone()
        return metrics

    def _publish(self, folder: Path, metrics: dict[str, float]) -> None:
        """Save the averaged model with its card and `training.json`."""
        summary = {
            "recipe": self.recipe.name,
            "step": self.progress.step,
            "minutes": round(self.progress.minutes, 2),
            "processes": self.accelerator.num_processes,
            "metrics": metrics,
            "best": self.progress.best,
            "config": self.config.to_dict(),
        }
        card = training_card(summary, getattr(self.stream.store, "hours", None))
        checkpointing.save_model(self.average.model, folder, {"training.json": summary}, card)

    def _save(self) -> None:
        world = self.accelerator.num_processes
        state = {
            "recipe": self.recipe.name,
            "progress": dataclasses.asdict(self.progress),
            "stream": {**self.stream.state_dict(), "position": self.stream.position * world},
            "config": self.config.to_dict(),
        }
        checkpointing.save_checkpoint(
            self.output_dir,
            self.progress.step,
            self._saved_modules(),
            {name: optimizer.optimizer for name, optimizer in self.optimizers.items()},
            state,
            rank=self.accelerator.process_index,
            keep=self.config.keep_checkpoints,
            wait=self.accelerator.wait_for_everyone,
        )


def train(recipe: Recipe, config: TrainingConfig) -> dict[str, float]:
    """Train a recipe to the end of its steps or minutes.

    `config.output_dir` receives the averaged model (`save_pretrained`), `training.json`, `best` (the best model by the
    recipe's metric), `checkpoints`, `logs` (TensorBoard) and `metrics.jsonl`.

    Returns:
        metrics of the last validation.
    """
    return Trainer(recipe, config).run()


__all__ = ["Trainer", "make_accelerator", "train"]
