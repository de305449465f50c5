"""The one training loop: Accelerate underneath, recipes on top."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from tqdm.auto import tqdm

from melreformer_hf.training import checkpointing
from melreformer_hf.training.config import TrainingConfig
from melreformer_hf.training.ema import WeightAverage
from melreformer_hf.training.recipes.base import BatchStream, Recipe, Validation


@dataclasses.dataclass
class Progress:
    """Counters of a training; saved with it."""

    step: int = 0
    seconds: float = 0.0
    best: float = math.inf
    bad_steps: int = 0
    skipped: int = 0


def make_accelerator(config: TrainingConfig) -> Accelerator:
    """The Accelerator of a run.

    Raises:
        ValueError: fp16 on a CPU; or the launcher started several processes that did not find each other.
    """
    cpu = config.cpu or not torch.cuda.is_available()
    if cpu and config.mixed_precision == "fp16":
        raise ValueError("mixed_precision=fp16 is about a hundred times slower than fp32 on CPUs; use bf16 or no.")
    accelerator = Accelerator(
        cpu=cpu,
        mixed_precision=config.mixed_precision,
    )
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != launched:
        raise ValueError(
            f"{launched} processes were launched but {accelerator.num_processes} found each other: each would train "
            "alone. On CPUs start them with `ACCELERATE_USE_CPU=true` in the environment."
        )
    return accelerator


class Trainer:
    """State of one training run and the steps it is made of."""

    def __init__(self, recipe: Recipe, config: TrainingConfig) -> None:
        self.recipe, self.config = recipe, config
        self.accelerator = make_accelerator(config)
        self.output_dir = Path(config.output_dir)
        self.output_dir.mkdir(parents=True, exist_ok=True)
        set_seed(config.seed)
        self.modules = {name: module.to(self.accelerator.device) for name, module in recipe.modules().items()}
        self.optimizers = {name: self._optimizer(names) for name, names in recipe.optimizer_modules().items()}
        self.average = WeightAverage(self.modules["model"], config.ema_decay)
        self.progress = Progress()
        self.checkpoint = checkpointing.resolve_resume(config.resume, self.output_dir)
        if self.checkpoint is not None:
            self._load(self.checkpoint)
        self.wrapped = {name: self.accelerator.prepare_model(module) for name, module in self.modules.items()}
        self.writer = SummaryWriter(str(self.output_dir / "logs")) if self.accelerator.is_main_process else None
        self.last_saved = time.monotonic()

    def _optimizer(self, names: list[str]) -> torch.optim.Optimizer:
        parameters = [p for name in names for p in self.modules[name].parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": self.config.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        return torch.optim.AdamW(groups, lr=self.config.learning_rate, betas=tuple(self.config.betas))

    def learning_rate(self) -> float:
        """Linear warm-up, then a cosine over the larger of the shares of steps and of minutes that have passed."""
        config, progress = self.config, self.progress
        share = progress.step / config.max_steps
        if config.max_minutes is not None:
            share = max(share, progress.seconds / 60 / config.max_minutes)
        cosine = 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
        rate = config.min_learning_rate + (config.learning_rate - config.min_learning_rate) * cosine
        return rate * min(1.0, (progress.step + 1) / max(1, config.warmup_steps))

    def finished(self) -> bool:
        """Whether steps or minutes are used up."""
        limit = self.config.max_minutes
        return self.progress.step >= self.config.max_steps or (
            limit is not None and self._agreed(self.progress.seconds / 60 >= limit)
        )

    def _agreed(self, value: bool) -> bool:
        # Clocks differ between processes; all follow the first one.
        if self.accelerator.num_processes == 1:
            return value
        flag = torch.tensor([float(value)], device=self.accelerator.device)
        torch.distributed.broadcast(flag, 0)
        return bool(flag.item())

    def loader(self) -> DataLoader:
        """Batches of this process from the current position on."""
        accelerator, config = self.accelerator, self.config
        stream = self.recipe.stream(accelerator.process_index, accelerator.num_processes)
        first = self.progress.step * config.gradient_accumulation_steps
        batches = BatchStream(self.recipe, stream, config.batch_size, first)
        return DataLoader(
            batches,
            batch_size=None,
            num_workers=config.num_workers,
            prefetch_factor=4 if config.num_workers else None,
            # Workers get a generator of their own: drawing their seed from the global one would make a resumed run
            # differ from an uninterrupted one.
            generator=torch.Generator().manual_seed(config.seed),
        )

    def step(self, batches) -> dict[str, float]:
        """One optimizer step per phase, gradients accumulated over the configured number of batches."""
        scalars: dict[str, float] = {}
        rate = self.learning_rate()
        accumulation = self.config.gradient_accumulation_steps
        for index in range(accumulation):
            batch = {key: value.to(self.accelerator.device) for key, value in next(batches).items()}
            for phase in self.recipe.phases(self.wrapped, batch, self.progress.step):
                self._backward(phase.optimizer, phase.loss / accumulation)
                for name, value in phase.scalars.items():
                    scalars[name] = scalars.get(name, 0.0) + float(value.detach()) / accumulation
                if index == accumulation - 1:
                    scalars.update(self._update(phase.optimizer, rate))
        self.average.update(self.modules["model"])
        self.progress.step += 1
        scalars["learning_rate"] = rate
        return scalars

    def _parameters(self, optimizer: str) -> list[nn.Parameter]:
        return [p for group in self.optimizers[optimizer].param_groups for p in group["params"]]

    def _backward(self, optimizer: str, loss: torch.Tensor) -> None:
        # A generator's loss also reaches the discriminators; what they have accumulated of their own is kept aside.
        others = [p for name in self.optimizers if name != optimizer for p in self._parameters(name)]
        kept = [parameter.grad for parameter in others]
        self.accelerator.backward(loss)
        for parameter, gradient in zip(others, kept, strict=True):
            parameter.grad = gradient

    def _update(self, name: str, rate: float) -> dict[str, float]:
        parameters = self._parameters(name)
        norm = nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm)
        if norm.isfinite():
            for group in self.optimizers[name].param_groups:
                group["lr"] = rate
            self.optimizers[name].step()
            self.progress.bad_steps = 0
        else:
            self.progress.bad_steps += 1
            self.progress.skipped += 1
            if self.progress.bad_steps >= self.config.max_bad_steps:
                raise FloatingPointError(
                    f"{self.progress.bad_steps} steps in a row had gradients that are not finite (the last in "
                    f"optimizer {name!r} at step {self.progress.step}). Lower learning_rate, use mixed_precision=no, "
                    "or look at the data; the last good checkpoint is untouched."
                )
        self.optimizers[name].zero_grad(set_to_none=True)
        return {f"grad_norm/{name}": float(norm)}

    def run(self) -> dict[str, float]:
        """Train to the end; returns the last validation's metrics."""
        batches = iter(self.loader())
        bar = tqdm(
            total=self.config.max_steps,
            initial=self.progress.step,
            desc=self.recipe.name,
            disable=not self.accelerator.is_main_process,
        )
        metrics: dict[str, float] = {}
        started = time.monotonic() - self.progress.seconds
        validated_at = -1
        while not self.finished():
            scalars = self.step(batches)
            self.progress.seconds = time.monotonic() - started
            bar.update()
            step = self.progress.step
            if self.writer is not None and (step % self.config.log_every == 0 or step == 1):
                for name, value in scalars.items():
                    self.writer.add_scalar(name, value, step)
                bar.set_postfix({k: f"{v:.4g}" for k, v in scalars.items() if "/" not in k and k != "learning_rate"})
                self._append_log({"step": step, "seconds": round(self.progress.seconds, 1), **scalars})
            due = self._agreed(self._time_to_save())
            if step % self.config.validate_every == 0 or due:
                metrics, validated_at = self.validate(), step
            if step % self.config.save_every == 0 or due:
                self.save()
            self.progress.seconds = time.monotonic() - started
        bar.close()
        if validated_at != self.progress.step:
            metrics = self.validate()
        self.save()
        self._publish_final()
        return metrics

    def _time_to_save(self) -> bool:
        minutes = self.config.save_minutes
        return minutes is not None and time.monotonic() - self.last_saved > 60 * minutes

    def _append_log(self, entry: dict) -> None:
        with open(self.output_dir / "log.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def validate(self) -> dict[str, float]:
        """Measure the averaged model; the best one by the recipe's metric is kept in `best`."""
        self.accelerator.wait_for_everyone()
        metrics: dict[str, float] = {}
        if self.accelerator.is_main_process:
            model = self.modules["model"]
            was_training = model.training
            # Validation draws noise of its own and must not move the training's generators.
            tensors, rest = checkpointing.random_state(self.accelerator.device)
            with self.average.applied_to(model), torch.no_grad():
                result = self.recipe.validate(model.eval(), self.accelerator.device)
                self._record(result)
                metrics = result.metrics
                value = metrics[self.recipe.best_metric]
                if value < self.progress.best:
                    self.progress.best = value
                    self._publish(model, "best", metrics)
            model.train(was_training)
            checkpointing.set_random_state(tensors, rest, self.accelerator.device)
        self.accelerator.wait_for_everyone()
        return metrics

    def _record(self, result: Validation) -> None:
        step = self.progress.step
        for name, value in result.metrics.items():
            self.writer.add_scalar(f"validation/{name}", value, step)
        for name, picture in result.pictures.items():
            self.writer.add_image(name, picture, step, dataformats="HWC")
        for name, (waveform, rate) in result.audio.items():
            self.writer.add_audio(name, waveform.reshape(1, -1).clamp(-1, 1), step, rate)
        entry = {"step": step, "seconds": round(self.progress.seconds, 1), "validation": result.metrics}
        self._append_log(entry)
        tqdm.write(json.dumps(entry))

    def _publish(self, model: nn.Module, name: str, metrics: dict[str, float]) -> None:
        temporary = self.output_dir / f".{name}.partial"
        shutil.rmtree(temporary, ignore_errors=True)
        self.recipe.publish(model, str(temporary))
        summary = {"recipe": self.recipe.name, "step": self.progress.step, "metrics": metrics}
        summary["minutes"] = round(self.progress.seconds / 60, 2)
        (temporary / "training.json").write_text(json.dumps(summary, indent=1))
        shutil.rmtree(self.output_dir / name, ignore_errors=True)
        os.replace(temporary, self.output_dir / name)

    def _publish_final(self) -> None:
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            with self.average.applied_to(self.modules["model"]) as model:
                self._publish(model, "final", {})
            self.writer.close()

    def save(self) -> None:
        """Write a checkpoint, complete or not at all."""
        accelerator = self.accelerator
        final = self.output_dir / f"{checkpointing.PREFIX}{self.progress.step}"
        temporary = self.output_dir / f".{final.name}.partial"
        if accelerator.is_main_process:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
        accelerator.wait_for_everyone()
        checkpointing.save_rank(temporary, accelerator.process_index, accelerator.device)
        if accelerator.is_main_process:
            state = {
                "progress": dataclasses.asdict(self.progress),
                "average_updates": self.average.num_updates,
                "stream": {"batches": self.progress.step * self.config.gradient_accumulation_steps},
                "world_size": accelerator.num_processes,
                "batch_size": self.config.batch_size,
                "seed": self.config.seed,
            }
            checkpointing.save_shared(temporary, self.modules, self.optimizers, self.average.shadow, state)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            checkpointing.publish(temporary, final, self.config.keep_checkpoints)
        accelerator.wait_for_everyone()
        self.last_saved = time.monotonic()

    def _load(self, folder: Path) -> None:
        average, state = checkpointing.load_shared(folder, self.modules, self.optimizers)
        here = {
            "world_size": self.accelerator.num_processes,
            "batch_size": self.config.batch_size,
            "seed": self.config.seed,
        }
        for name, value in here.items():
            if state[name] != value:
                raise ValueError(
                    f"The checkpoint {folder} was made with {name}={state[name]}, this run has {value}: the data "
                    "would not continue where it stopped. Resume with the same value."
                )
        self.progress = Progress(**state["progress"])
        self.average.num_updates = state["average_updates"]
        self.average.shadow = {name: tensor.to(self.accelerator.device) for name, tensor in average.items()}
        checkpointing.load_rank(folder, self.accelerator.process_index, self.accelerator.device)


def train(recipe: Recipe, config: TrainingConfig) -> dict[str, float]:
    """Train a recipe; see `Trainer` for what is written to `config.output_dir`."""
    return Trainer(recipe, config).run()


__all__ = ["Trainer", "make_accelerator", "train"]
