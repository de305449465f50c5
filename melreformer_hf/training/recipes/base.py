"""What a recipe is: what is trained, on which items, with which losses, and how it is measured.

The trainer knows streams, phases and states; what they mean (audio, tokens, notes) is the recipe's business.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from torch import nn

from melreformer_hf.data.streams import ItemStream
from melreformer_hf.training.config import TrainingConfig, build_dataclass
from melreformer_hf.training.optimizers import OptimizerSettings


def check_validation_split(split: str) -> None:
    """The split that chooses the best model, in the options of every recipe.

    Raises:
        ValueError: it is `test`.
    """
    if split == "test":
        raise ValueError(
            "options.validation_split must not be 'test': the best model is chosen by this split, and a test split "
            "that chooses measures nothing. Use 'validation'; `melreformer evaluate` reads 'test', once, at the end."
        )


@runtime_checkable
class Stateful(Protocol):
    """Anything whose state can be saved: a module, an optimizer, a running mean."""

    def state_dict(self) -> dict: ...

    def load_state_dict(self, state_dict: dict) -> Any: ...


@dataclasses.dataclass(frozen=True)
class Trainable:
    """A module with the settings of its own optimizer.

    Args:
        module: what is trained.
        optimizer: what differs from the settings of the training.
    """

    module: nn.Module
    optimizer: OptimizerSettings = OptimizerSettings()


@dataclasses.dataclass(frozen=True)
class StepContext:
    """Where in the training a batch comes.

    Args:
        step: optimizer steps done before this one.
        micro_index: number of the batch within its step, from 0.
        num_micro_steps: batches per step (`gradient_accumulation_steps`).
        progress: share of the training that is done, 0..1.
        generator: on the CPU; seeded by (seed, step, micro_index), so that it draws the same in every process and after
            resuming. For draws that processes must share, such as which discriminator judges; what differs from item to
            item is drawn in `prepare`.
    """

    step: int
    micro_index: int
    num_micro_steps: int
    progress: float
    generator: torch.Generator

    @property
    def is_last_micro_step(self) -> bool:
        """Whether the optimizers step after this batch."""
        return self.micro_index == self.num_micro_steps - 1


@dataclasses.dataclass
class Phase:
    """One loss of a batch.

    Args:
        module: name of the module that this loss trains; gradients that reach other modules are dropped.
        loss: scalar whose gradient is taken, a mean over the batch.
        scalars: named numbers for the log.
        kept: what `after_step` needs of this batch (codes, assignments), without a graph.
    """

    module: str
    loss: torch.Tensor
    scalars: Mapping[str, torch.Tensor] = dataclasses.field(default_factory=dict)
    kept: Any = None


@dataclasses.dataclass
class Validation:
    """What a validation finds.

    Args:
        metrics: named numbers; one of them is the recipe's `best_metric`.
        pictures: name -> (height, width, 3) uint8.
        audio: name -> (samples,) float32.
        sampling_rate: samples per second of `audio`.
        summary: the result in words, beside its baseline: "0.83x of re-interpolation".
        counts: of how many of what: {"crops": 12}.
    """

    metrics: dict[str, float]
    pictures: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    audio: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)
    sampling_rate: int | None = None
    summary: str = ""
    counts: dict[str, int] = dataclasses.field(default_factory=dict)


class Recipe(abc.ABC):
    """Base of all recipes; `docs/extending.md` writes one.

    Subclasses set `name`, `best_metric`, `Options`, and define the abstract methods. Randomness of an item (crops, noise,
    time steps) comes from the generator handed to `prepare`, which is seeded by the item's place in the global sequence:
    it depends neither on workers nor on processes, and resumes exactly.

    Args:
        config: settings; `config.options` becomes `self.options`, an instance of `Options`.

    Attributes:
        name: of the recipe.
        best_metric: the metric that chooses the best model.
        greater_is_better: whether that metric is to rise.
        reads_notes: whether the dataset is one of `melreformer data tokenize`, not of recordings.
        reads_performances: whether it is one of performances, recordings with their notes (`data.performances`); may
            depend on the options.
        reads_labels: whether recordings have classes: a folder of them is then built with one for each of its folders.
        scheme: of the tokens in it, or `notes`.
        further_datasets: names of options that hold further datasets of the same kind as `config.dataset`, folders of
            recordings among them.
        modules: what `trainables` and `frozen` gave, as the trainer prepared them; call these in `phases`.
    """

    name: ClassVar[str]
    best_metric: ClassVar[str]
    greater_is_better: ClassVar[bool] = False
    reads_notes: ClassVar[bool] = False
    reads_labels: ClassVar[bool] = False
    reads_performances: bool = False
    scheme: str = "notes"
    further_datasets: ClassVar[tuple[str, ...]] = ()

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Options:
        """Settings that only this recipe has."""

    def __init__(self, config: TrainingConfig) -> None:
        self.config = config
        self.options = build_dataclass(self.Options, config.options, f"The {self.name} recipe's options")
        # Filled by the trainer: wrapped modules replace those that `trainables` gave.
        self.modules: dict[str, nn.Module] = {}

    def __getstate__(self) -> dict:
        return {**self.__dict__, "modules": {}}  # worker processes prepare items; weights stay with the trainer

    @abc.abstractmethod
    def trainables(self) -> dict[str, Trainable]:
        """What is trained, by name; `model` is averaged, validated and published (`save_pretrained`)."""

    def frozen(self) -> dict[str, nn.Module]:
        """Companions that are not trained, such as a trained codec: moved to the device, never in a checkpoint."""
        return {}

    def begin(self, model: nn.Module) -> None:  # noqa: B027
        """Complete the model with what it takes from the data, once it has its first weights (`init_from` included)."""

    def stateful(self) -> dict[str, Stateful]:
        """What else changes while training (loss balancer, running means): saved with every checkpoint."""
        return {}

    @abc.abstractmethod
    def stream(self, rank: int, world_size: int) -> ItemStream:
        """The training items of one process."""

    @abc.abstractmethod
    def prepare(self, item: dict, generator: torch.Generator) -> dict[str, Any]:
        """Tensors of one item; runs in a worker process. Unequal lengths are padded, see `data.collation.collate`."""

    @abc.abstractmethod
    def phases(self, batch: dict[str, Any], context: StepContext) -> Iterator[Phase]:
        """Losses of one batch, at most one for each module.

        After the last batch of a step a module is stepped before its recipe is asked for the next phase, so that a
        generator is judged by the discriminator that has just learned.

        Args:
            batch: collated items, on the device.
            context: where in the training the batch comes.
        """

    def after_step(self, kept: dict[str, list], context: StepContext) -> None:  # noqa: B027  most recipes need none
        """What follows an optimizer step, such as updating codebooks.

        Args:
            kept: `Phase.kept` of all batches of the step, by module; a module whose update was skipped because its
                gradients were not finite is left out, and nothing is called when all were.
            context: of the step's last batch.
        """

    def prepare_validation(self) -> None:  # noqa: B027
        """Open what is held out and compute baselines; called before the first step, so that nothing fails after the last.

        Raises:
            ValueError: there is nothing to validate on.
        """

    @abc.abstractmethod
    def validate(self, model: nn.Module) -> Validation:
        """Measure the averaged model, running freely, on held-out data; gradients are off, the seed is fixed."""

    def may_differ(self, name: str) -> bool:
        """Whether `init_from` weights need not have this parameter, or may have one that the model lacks: new parts."""
        return False

    def save_beside(self, folder: Path, card: Mapping[str, str]) -> None:  # noqa: B027
        """Write what belongs beside the weights of the model, such as a tokenizer, into a folder that has them.

        Args:
            folder: is moved to its place afterwards.
            card: texts of the model's card, for models that do not write it themselves.
        """

    def describe_data(self) -> str:
        """How much is trained on, for the first line of the output and for the card: "3.5 h of audio"."""
        return ""

    def check_start(self, pretrained: nn.Module) -> None:  # noqa: B027
        """Refuse weights (`init_from`) of another contract.

        Raises:
            ValueError: names what differs.
        """


__all__ = ["Phase", "Recipe", "Stateful", "StepContext", "Trainable", "Validation", "check_validation_split"]
