"""What a recipe is: models, how an item becomes tensors, losses, validation. The loop knows nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn
from torch.utils.data import IterableDataset, get_worker_info

from melreformer_hf.audio.mel import MelConfig
from melreformer_hf.data.streams import AudioCropStream, RecordingStore
from melreformer_hf.training.config import TrainingConfig, build_dataclass


@dataclasses.dataclass
class Phase:
    """One loss of a training step.

    Args:
        module: name of the module that this loss trains.
        loss: scalar whose gradient is taken.
        scalars: named numbers for the log.
    """

    module: str
    loss: torch.Tensor
    scalars: dict[str, torch.Tensor]


@dataclasses.dataclass
class Validation:
    """What a validation finds.

    Args:
        metrics: named numbers; one of them is the recipe's `best_metric`, lower is better.
        pictures: name -> (height, width, 3) uint8.
        audio: name -> (samples,) float32, at the sampling rate of the data.
    """

    metrics: dict[str, float]
    pictures: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    audio: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)


class Recipe:
    """Base of all recipes: a training step is a function of (modules, batch) that returns scalars.

    Subclasses set `name`, `best_metric`, `Options` and, where mels are made, `mel`, and define the methods below.
    Randomness of an item (crops, noise, time steps) comes from the generator handed to `prepare`, which is seeded by the
    item's place in the global sequence: it depends neither on workers nor on processes, and resumes exactly.

    Args:
        config: settings; `config.options` becomes `self.options`, an instance of `Options`.
    """

    name: str
    best_metric: str
    mel: MelConfig | None = None

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Options:
        """Settings that only this recipe has."""

    def __init__(self, config: TrainingConfig) -> None:
        self.config = config
        self.options = build_dataclass(self.Options, config.options, f"The {self.name} recipe's options")
        self._stores: dict[str, RecordingStore] = {}

    def store(self, split: str) -> RecordingStore:
        """The recordings of a split, opened once.

        Raises:
            ValueError: no such dataset or split, or its sampling rate is not that of the mel contract.
        """
        if split not in self._stores:
            store = RecordingStore(self.config.dataset, split, self.config.cache_minutes)
            if self.mel is not None and store.sampling_rate != self.mel.sampling_rate:
                raise ValueError(
                    f"The dataset {self.config.dataset} has {store.sampling_rate} samples per second, the model's mel "
                    f"contract {self.mel.sampling_rate}. Build the dataset with --sampling-rate {self.mel.sampling_rate}, "
                    "or give the model a contract of the dataset's rate under `model: {mel: ...}`."
                )
            self._stores[split] = store
        return self._stores[split]

    def modules(self) -> dict[str, nn.Module]:
        """Trained modules by name; `model` is the one that is averaged, validated and published."""
        raise TypeError(f"{type(self).__name__} must define modules()")

    def stream(self, rank: int, world_size: int) -> AudioCropStream:
        """The training items of one process."""
        raise TypeError(f"{type(self).__name__} must define stream()")

    def prepare(self, item: dict, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Tensors of one item, of the same shapes for all items; runs in a worker process."""
        raise TypeError(f"{type(self).__name__} must define prepare()")

    def phases(
        self, modules: dict[str, nn.Module], batch: dict[str, torch.Tensor], progress: float
    ) -> Iterator[Phase]:
        """Losses of one batch, one after another; the loop steps the phase's module before it asks for the next.

        Args:
            modules: as the accelerator prepared them.
            batch: stacked items, on the device.
            progress: share of the training that is done, 0..1.
        """
        raise TypeError(f"{type(self).__name__} must define phases()")

    def validate(self, model: nn.Module) -> Validation:
        """Measure the averaged model, running freely, on held-out recordings."""
        raise TypeError(f"{type(self).__name__} must define validate()")


class BatchStream(IterableDataset):
    """Batches of prepared items; worker w of n makes the batches w, w + n, ... so that their order is always the same.

    Args:
        recipe: prepares the items.
        stream: the items of this process, at the position where the training continues.
        batch_size: items per batch.
    """

    def __init__(self, recipe: Recipe, stream: AudioCropStream, batch_size: int) -> None:
        self.recipe, self.stream, self.batch_size = recipe, stream, batch_size
        self.first = stream.position  # the loop moves the stream's own position on

    def batch(self, number: int) -> dict[str, torch.Tensor]:
        """Batch `number` of this process, counted from the stream's position."""
        stream, prepared = self.stream, []
        for local in range(number * self.batch_size, (number + 1) * self.batch_size):
            item = stream.item((self.first + local) * stream.world_size + stream.rank)
            # Two odd constants spread neighbouring indices over the generator's seeds.
            seed = (stream.seed * 0x9E3779B97F4A7C15 + item["index"] * 0xBF58476D1CE4E5B9) % 2**63
            prepared.append(self.recipe.prepare(item, torch.Generator().manual_seed(seed)))
        return {key: torch.stack([item[key] for item in prepared]) for key in prepared[0]}

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        worker = get_worker_info()
        number, stride = (0, 1) if worker is None else (worker.id, worker.num_workers)
        while True:
            yield self.batch(number)
            number += stride


__all__ = ["BatchStream", "Phase", "Recipe", "Validation"]
