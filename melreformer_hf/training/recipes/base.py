"""What a recipe is: models, how an item becomes a batch, losses, validation. The loop knows nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.data import IterableDataset, get_worker_info

from melreformer_hf.data.streams import AudioCropStream
from melreformer_hf.training.config import TrainingConfig


@dataclasses.dataclass
class Phase:
    """One optimizer step of a training step.

    Args:
        optimizer: name of the optimizer (and of its parameters' group of modules).
        loss: scalar whose gradient is taken.
        scalars: named numbers for the log.
    """

    optimizer: str
    loss: torch.Tensor
    scalars: dict[str, torch.Tensor]


@dataclasses.dataclass
class Validation:
    """What a validation finds.

    Args:
        metrics: named numbers; one of them is the recipe's `best_metric` (lower is better).
        pictures: name -> array (height, width, 3) of uint8.
        audio: name -> (waveform (samples,), samples per second).
    """

    metrics: dict[str, float]
    pictures: dict[str, Any] = dataclasses.field(default_factory=dict)
    audio: dict[str, tuple[torch.Tensor, int]] = dataclasses.field(default_factory=dict)


class Recipe:
    """Base of all recipes.

    Subclasses set `name` and `best_metric` and define the methods below. Randomness of an item (noise, crops, time
    steps) comes from the generator handed to `prepare`, which is seeded by the item's index: it is then independent
    of the numbers of workers and processes, and resumes exactly.
    """

    name: str
    best_metric: str

    def __init__(self, config: Any, training: TrainingConfig) -> None:
        self.config = config
        self.training = training

    def modules(self) -> dict[str, nn.Module]:
        """Trainable modules by name; `model` is the one that is averaged, validated and published."""
        raise TypeError(f"{type(self).__name__} must define modules()")

    def optimizer_modules(self) -> dict[str, list[str]]:
        """Optimizer name -> names of the modules it trains."""
        return {"model": ["model"]}

    def stream(self, rank: int, world_size: int) -> AudioCropStream:
        """The training stream of one process."""
        raise TypeError(f"{type(self).__name__} must define stream()")

    def prepare(self, item: dict, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Tensors of one item, all with the same shapes for all items."""
        raise TypeError(f"{type(self).__name__} must define prepare()")

    def phases(self, modules: dict[str, nn.Module], batch: dict[str, torch.Tensor], step: int) -> Iterator[Phase]:
        """Losses of one batch; the loop takes an optimizer step after each yielded phase."""
        raise TypeError(f"{type(self).__name__} must define phases()")

    def validate(self, model: nn.Module, device: torch.device) -> Validation:
        """Measure the (averaged) model on held-out recordings, running freely."""
        raise TypeError(f"{type(self).__name__} must define validate()")

    def publish(self, model: nn.Module, folder: str) -> None:
        """Save the model as users load it."""
        model.save_pretrained(folder)


class BatchStream(IterableDataset):
    """Batches of prepared items; worker w of n makes the batches w, w + n, ... so that their order is always the same.

    Args:
        recipe: prepares the items.
        stream: the items of this process.
        batch_size: items per batch.
        first_batch: batches of this process that were consumed before.
    """

    def __init__(self, recipe: Recipe, stream: AudioCropStream, batch_size: int, first_batch: int = 0) -> None:
        self.recipe, self.stream = recipe, stream
        self.batch_size, self.first_batch = batch_size, first_batch

    def batch(self, number: int) -> dict[str, torch.Tensor]:
        """Batch `number` of this process."""
        prepared = []
        for local in range(number * self.batch_size, (number + 1) * self.batch_size):
            item = self.stream.item(local * self.stream.world_size + self.stream.rank)
            generator = torch.Generator().manual_seed((self.stream.seed << 32) ^ (item["index"] * 2654435761 % 2**62))
            prepared.append(self.recipe.prepare(item, generator))
        return {key: torch.stack([item[key] for item in prepared]) for key in prepared[0]}

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        worker = get_worker_info()
        number, stride = self.first_batch, 1
        if worker is not None:
            torch.set_num_threads(1)
            number, stride = number + worker.id, worker.num_workers
        while True:
            yield self.batch(number)
            number += stride


__all__ = ["BatchStream", "Phase", "Recipe", "Validation"]
