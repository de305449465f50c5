"""What changes while a training runs, and is therefore saved with it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from accelerate import Accelerator
from torch import nn

from melreformer_hf.training import checkpointing
from melreformer_hf.training.checkpointing import Stateful
from melreformer_hf.training.config import TrainingConfig
from melreformer_hf.training.ema import WeightAverage
from melreformer_hf.training.optimizers import build_optimizer
from melreformer_hf.training.progress import Progress
from melreformer_hf.training.recipes.base import Recipe


def _checkpoint_gradients(model: nn.Module) -> None:
    supported = ("supports_gradient_checkpointing", "_supports_gradient_checkpointing")
    if not any(getattr(model, name, False) for name in supported):
        raise ValueError(f"gradient_checkpointing must be false for {type(model).__name__}, which has none; got True.")
    if hasattr(model, "activation_checkpointing_enable"):  # transformers' name
        model.activation_checkpointing_enable()
    else:  # diffusers'
        model.enable_gradient_checkpointing()


class TrainingState:
    """Weights, their average, optimizers, counters and the position in the data.

    Args:
        recipe: what is trained.
        config: settings of the training.
        accelerator: its devices and processes.
    """

    def __init__(self, recipe: Recipe, config: TrainingConfig, accelerator: Accelerator) -> None:
        self.recipe, self.config, self.accelerator = recipe, config, accelerator
        self.output_dir = Path(config.output_dir)
        modules = self._initial_modules()
        if config.gradient_checkpointing:
            _checkpoint_gradients(modules["model"])
        self.average = WeightAverage(modules["model"].to(accelerator.device), config.ema_decay)
        self.modules = {name: accelerator.prepare_model(module.train()) for name, module in modules.items()}
        self.plain = {name: accelerator.unwrap_model(module) for name, module in self.modules.items()}
        self.optimizers = {
            name: accelerator.prepare_optimizer(build_optimizer(module, self._learning_rate(name), config))
            for name, module in self.plain.items()
        }
        self.progress = Progress()
        self.stream = recipe.stream(accelerator.process_index, accelerator.num_processes)

    def _initial_modules(self) -> dict[str, nn.Module]:
        modules, source = self.recipe.modules(), self.config.init_from
        if source is not None:
            start, model = type(modules["model"]).from_pretrained(source), modules["model"]
            if self.recipe.mel is not None:
                theirs = getattr(start, "mel_config", None) or start.config.mel_config
                theirs.check_matches(self.recipe.mel, "init_from", "this training")
            try:
                model.load_state_dict(start.state_dict())
            except RuntimeError as error:
                raise ValueError(
                    f"The weights of init_from={source} do not fit this configuration: {error}"
                ) from error
        return modules

    def _learning_rate(self, name: str) -> float:
        config = self.config
        return config.learning_rate if name == "model" else config.discriminator_learning_rate or config.learning_rate

    @property
    def share(self) -> float:
        """Share of the training that is done, 0..1, in steps or minutes, whichever ends it first."""
        return self.progress.share(self.config)

    def _saved_modules(self) -> dict[str, nn.Module]:
        return {**self.plain, "average": self.average.model}

    def _saved_optimizers(self) -> dict[str, Stateful]:
        saved = {name: optimizer.optimizer for name, optimizer in self.optimizers.items()}
        scaler = self.accelerator.scaler  # of fp16: its scale is part of the training
        return saved if scaler is None else {**saved, "gradient_scaler": scaler}

    def resume(self) -> None:
        """Continue where `config.resume` says; otherwise the folder must hold no training yet.

        Raises:
            ValueError: the folder holds another training already, or the checkpoint does not fit.
        """
        resume, existing = self.config.resume, checkpointing.list_checkpoints(self.output_dir)
        path = None if resume is None else checkpointing.find_checkpoint(resume, self.output_dir)
        if existing and (path is None or path.resolve() not in [own.resolve() for own in existing]):
            raise ValueError(
                f"output_dir {self.output_dir} holds a training already. Continue it with --resume latest, or choose "
                "another folder."
            )
        if path is None:
            return
        state = checkpointing.load_checkpoint(
            path, self._saved_modules(), self._saved_optimizers(), rank=self.accelerator.process_index
        )
        if state["recipe"] != self.recipe.name:
            raise ValueError(f"{path} belongs to the recipe {state['recipe']!r}, this one is {self.recipe.name!r}.")
        self.stream.load_state_dict({**state["stream"], "position": self._own_position(state["stream"]["position"])})
        self.progress = Progress(**state["progress"])

    def _own_position(self, items: int) -> int:
        world = self.accelerator.num_processes
        position, remainder = divmod(items, world)
        if remainder:
            raise ValueError(
                f"The training stopped after {items} items, which {world} processes cannot share equally; resume with "
                "a number of processes that divides it."
            )
        return position

    def save(self) -> None:
        """Write a checkpoint; every process calls it."""
        accelerator = self.accelerator
        items = self.stream.position * accelerator.num_processes
        state = {
            "recipe": self.recipe.name,
            "progress": dataclasses.asdict(self.progress),
            "stream": {**self.stream.state_dict(), "position": items},
            "config": self.config.to_dict(),
        }
        checkpointing.save_checkpoint(
            self.output_dir,
            self.progress.step,
            self._saved_modules(),
            self._saved_optimizers(),
            state,
            rank=accelerator.process_index,
            keep=self.config.keep_checkpoints,
            wait=accelerator.wait_for_everyone,
        )


__all__ = ["TrainingState"]
