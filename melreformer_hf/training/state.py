"""What changes while a training runs, and is therefore saved with it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from melreformer_hf.training import checkpointing, wrapping
from melreformer_hf.training.checkpointing import Part
from melreformer_hf.training.config import TrainingConfig
from melreformer_hf.training.ema import WeightAverage
from melreformer_hf.training.initialization import checkpoint_gradients, load_pretrained
from melreformer_hf.training.progress import Progress, RunningMeans
from melreformer_hf.training.recipes.base import Recipe, Trainable


class TrainingState:
    """Weights, their average, optimizers, what the recipe calls stateful, counters, and the position in the data.

    Args:
        recipe: what is trained; its `modules` are set.
        config: settings of the training.
        accelerator: its devices and processes.

    Attributes:
        modules: the trained modules as the accelerator prepared them, wrapped or sharded; `wrapping` reads them.
        optimizers: theirs, by the same names.
        max_grad_norms: theirs, by the same names.

    Raises:
        ValueError: the recipe trains no `model`, or the starting weights do not fit.
    """

    def __init__(self, recipe: Recipe, config: TrainingConfig, accelerator: Accelerator) -> None:
        self.recipe, self.config, self.accelerator = recipe, config, accelerator
        self.output_dir = Path(config.output_dir)
        trainables, frozen = recipe.trainables(), recipe.frozen()
        _check_names(recipe, trainables, frozen)
        model = trainables["model"].module
        if config.init_from is not None:
            load_pretrained(model, config.init_from, recipe)
        recipe.begin(model)
        if config.gradient_checkpointing:
            checkpoint_gradients(model)
        # Before wrapping: a wrapper cannot be copied, and a shard is no model.
        self.average = WeightAverage(model.to(accelerator.device), config.ema_decay)
        self.modules: dict[str, nn.Module] = {}
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.max_grad_norms: dict[str, float] = {}
        for name, trainable in trainables.items():
            settings = trainable.optimizer.completed(config)
            prepared = wrapping.prepare(accelerator, trainable.module, settings)
            self.modules[name], self.optimizers[name] = prepared
            self.max_grad_norms[name] = settings.max_grad_norm
        self.average.follow(self.modules["model"])
        companions = {name: place_frozen(module, accelerator.device) for name, module in frozen.items()}
        recipe.modules = {**self.modules, **companions}
        # After `trainables`: a recipe may make these where it makes its modules.
        self.stateful = recipe.stateful()
        for stateful in self.stateful.values():
            if isinstance(stateful, nn.Module):
                stateful.to(accelerator.device)
        self.progress, self.means = Progress(), RunningMeans()
        self.stream = recipe.stream(accelerator.process_index, accelerator.num_processes)

    @property
    def share(self) -> float:
        """Share of the training that is done, 0..1, in steps or minutes, whichever ends it first."""
        return self.progress.share(self.config)

    def _weights(self) -> dict[str, Part]:
        parts = {
            name: Part(
                lambda module=module: wrapping.weights_of(module),
                lambda weights, module=module: wrapping.load_weights(module, weights),
            )
            for name, module in self.modules.items()
        }
        return {**parts, "average": Part(self.average.weights, self.average.load_weights)}

    def _optimizers(self) -> dict[str, Part]:
        parts = {
            name: Part(
                lambda pair=(self.modules[name], optimizer): wrapping.optimizer_state(*pair),
                lambda state, pair=(self.modules[name], optimizer): wrapping.load_optimizer_state(*pair, state),
            )
            for name, optimizer in self.optimizers.items()
        }
        scaler = self.accelerator.scaler  # of fp16: its scale is part of the training
        return (
            parts if scaler is None else {**parts, "gradient_scaler": Part(scaler.state_dict, scaler.load_state_dict)}
        )

    def resume(self) -> Path | None:
        """Continue where `config.resume` says; otherwise the folder must hold no training yet.

        Returns:
            the checkpoint that is continued, if there is one.

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
            return None
        state, process = checkpointing.load_checkpoint(
            path, self._weights(), self._optimizers(), rank=self.accelerator.process_index
        )
        if state["recipe"] != self.recipe.name:
            raise ValueError(f"{path} belongs to the recipe {state['recipe']!r}, this one is {self.recipe.name!r}.")
        for name, stateful in self.stateful.items():
            if name not in process["stateful"]:
                raise ValueError(f"The checkpoint {path} has no state of {name!r}; it belongs to another training.")
            stateful.load_state_dict(process["stateful"][name])
        self.means.load_state_dict(process["means"], self.accelerator.device)
        self.stream.load_state_dict({**state["stream"], "position": self._own_position(state["stream"]["position"])})
        self.progress = Progress(**state["progress"])
        return path

    def _own_position(self, items: int) -> int:
        world = self.accelerator.num_processes
        position, remainder = divmod(items, world)
        if remainder:
            raise ValueError(
                f"The training stopped after {items} items, which {world} processes cannot share equally; resume with "
                "a number of processes that divides it."
            )
        return position

    def save(self) -> Path:
        """Write a checkpoint; every process calls it."""
        accelerator = self.accelerator
        # Items of all processes: the training may go on with another number of them.
        items = self.stream.position * accelerator.num_processes
        state = {
            "recipe": self.recipe.name,
            "progress": dataclasses.asdict(self.progress),
            "stream": {**self.stream.state_dict(), "position": items},
            "config": self.config.to_dict(),
        }
        stateful = {name: stateful.state_dict() for name, stateful in self.stateful.items()}
        return checkpointing.save_checkpoint(
            self.output_dir,
            self.progress.step,
            self._weights(),
            self._optimizers(),
            {"stateful": stateful, "means": self.means.state_dict()},
            state,
            rank=accelerator.process_index,
            keep=self.config.keep_checkpoints,
            wait=accelerator.wait_for_everyone,
        )


def place_frozen(module: nn.Module, device: torch.device | str) -> nn.Module:
    """A companion that is not trained, ready to run."""
    return module.to(device).eval().requires_grad_(False)


def _check_names(recipe: Recipe, trainables: dict[str, Trainable], frozen: dict[str, nn.Module]) -> None:
    if "model" not in trainables:
        raise ValueError(f"trainables() of the {recipe.name} recipe must hold 'model', got {sorted(trainables)}.")
    twice = (trainables.keys() & frozen.keys()) | (trainables.keys() & {"average"})
    if twice:
        raise ValueError(
            f"Names of the {recipe.name} recipe's modules must be different ('average' is taken), got {sorted(twice)} twice."
        )


__all__ = ["TrainingState", "place_frozen"]
