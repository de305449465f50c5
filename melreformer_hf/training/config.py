"""The settings of one training: a frozen dataclass, read from YAML, overridden on the command line."""

from __future__ import annotations

import dataclasses
import inspect
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from melreformer_hf.configs import configs_of, find_config
from melreformer_hf.training.arguments import FieldParser, build_dataclass, option, read_yaml

if TYPE_CHECKING:
    from melreformer_hf.training.recipes.base import Recipe

OWNER = "The training's settings"
MIXED_PRECISION = ("no", "bf16", "fp16")
OPTIMIZERS = ("adamw", "muon")
_EPILOG = """Lists are written [1, 2] or 1,2, nothing is null. Configs of this recipe: {configs}.

  melreformer train {name} --config tiny --dataset data/mine --max_minutes 5
  melreformer train {name} --config tiny --print-config > mine.yaml
  accelerate launch -m melreformer_hf.training {name} --config mine.yaml --dataset data/mine
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Everything the loop needs to know; what only one recipe needs lies in `model` and `options`.

    Raises:
        ValueError: a field breaks its rule, or a key is unknown; the message names field, rule and value.
    """

    dataset: str = option(
        "",
        "folder made by `melreformer data build`, a Hub id, or a folder of recordings or MIDI files to build it from",
    )
    output_dir: str = option("", "folder for checkpoints, logs and the final model")
    seed: int = option(0, "drives initial weights, data order and noise")
    max_steps: int | None = option(None, "stop after this many optimizer steps")
    max_minutes: float | None = option(None, "stop after this much time, resumed parts included")
    batch_size: int = option(8, "items per process and micro batch")
    gradient_accumulation_steps: int = option(1, "micro batches per optimizer step")
    learning_rate: float = option(1e-3, "peak learning rate")
    discriminator_learning_rate: float | None = option(None, "peak for discriminators; default: learning_rate")
    warmup_steps: int = option(100, "steps of linear warm-up")
    final_learning_rate_ratio: float = option(0.0, "learning rate at the end, as a share of the peak")
    optimizer: str = option("adamw", "adamw, or muon: orthogonalized momentum for hidden matrices, AdamW for the rest")
    adam_betas: tuple[float, float] = option((0.9, 0.99), "AdamW's averaging factors")
    adam_epsilon: float = option(1e-8, "AdamW's epsilon; updates of gradients below it fade")
    weight_decay: float = option(0.01, "AdamW's decay of weights with two axes or more")
    max_grad_norm: float = option(1.0, "gradients are scaled down to this norm, in every precision")
    mixed_precision: str = option("no", "no, bf16, or fp16 (GPU only)")
    ema_decay: float = option(0.999, "averaging of the weights that are validated and saved; 0 keeps the last ones")
    log_every_steps: int = option(20, "steps between two lines of losses")
    validate_every_steps: int | None = option(None, "steps between two validations")
    validate_every_minutes: float | None = option(None, "minutes between two validations")
    save_every_steps: int | None = option(None, "steps between two checkpoints")
    save_every_minutes: float | None = option(10.0, "minutes between two checkpoints")
    keep_checkpoints: int = option(2, "latest checkpoints that are kept; the best model is kept beside them")
    resume: str | None = option(None, "latest, or the folder of a checkpoint, to continue from")
    init_from: str | None = option(None, "folder or Hub id of a pretrained model whose weights start the training")
    soundfont: str | None = option(None, "SF2 or SF3 file that plays a folder of MIDI files; default: the system's")
    audio_column: str = option("audio", "column with the audio, of datasets of other programs")
    num_workers: int = option(1, "processes that prepare batches; 0 prepares them in the loop")
    prefetch_batches: int = option(4, "batches each worker prepares ahead")
    cache_minutes: float = option(120.0, "minutes of decoded audio each worker keeps in memory")
    max_nonfinite_steps: int = option(
        20, "updates in a row that may be skipped for infinite gradients before an error"
    )
    gradient_checkpointing: bool = option(False, "save memory: activations of the model's blocks are computed twice")
    cpu: bool = option(False, "train on the CPU although there is an accelerator")
    progress_bar: bool = option(True, "show a progress bar")
    model: dict = option({}, "fields of the model's configuration: --model.NAME VALUE, or under `model:` in a file")
    options: dict = option({}, "fields of the recipe's options: --options.NAME VALUE, or under `options:` in a file")

    def __post_init__(self) -> None:
        optional_positive = (
            "max_steps",
            "max_minutes",
            "validate_every_steps",
            "validate_every_minutes",
            "save_every_steps",
            "save_every_minutes",
            "discriminator_learning_rate",
        )
        rules = [
            (name, getattr(self, name) is None or getattr(self, name) > 0, "be positive") for name in optional_positive
        ]
        rules += [
            (name, getattr(self, name) >= 1, "be at least 1")
            for name in ("batch_size", "gradient_accumulation_steps", "log_every_steps", "keep_checkpoints")
            + ("prefetch_batches", "max_nonfinite_steps")
        ]
        rules += [
            (
                "dataset",
                bool(self.dataset),
                "be given: a folder of recordings or MIDI files, one made by `melreformer data build`, or a Hub id",
            ),
            ("output_dir", bool(self.output_dir), "be given"),
            ("max_steps", self.max_steps or self.max_minutes, "be given unless max_minutes is"),
            ("learning_rate", self.learning_rate > 0, "be positive"),
            ("warmup_steps", self.warmup_steps >= 0, "not be negative"),
            ("num_workers", self.num_workers >= 0, "not be negative"),
            ("cache_minutes", self.cache_minutes >= 0, "not be negative"),
            ("weight_decay", self.weight_decay >= 0, "not be negative"),
            ("adam_epsilon", self.adam_epsilon > 0, "be positive"),
            ("max_grad_norm", self.max_grad_norm > 0, "be positive"),
            ("final_learning_rate_ratio", 0 <= self.final_learning_rate_ratio <= 1, "be in [0, 1]"),
            ("ema_decay", 0 <= self.ema_decay < 1, "be in [0, 1)"),
            ("mixed_precision", self.mixed_precision in MIXED_PRECISION, f"be one of {MIXED_PRECISION}"),
            ("optimizer", self.optimizer in OPTIMIZERS, f"be one of {OPTIMIZERS}"),
            ("adam_betas", all(0 <= beta < 1 for beta in self.adam_betas), "be in [0, 1)"),
        ]
        for name, holds, rule in rules:
            if not holds:
                raise ValueError(f"{name} must {rule}, got {getattr(self, name)!r}.")

    @classmethod
    def from_yaml(cls, path: str | os.PathLike, overrides: Mapping[str, Any] | None = None) -> TrainingConfig:
        """Read a YAML file; `overrides` replace its values, dictionaries key by key."""
        values = read_yaml(path)
        for name, value in (overrides or {}).items():
            both = isinstance(value, Mapping) and isinstance(values.get(name), Mapping)
            values[name] = {**values[name], **value} if both else value
        return build_dataclass(cls, values, OWNER)

    @classmethod
    def from_command_line(
        cls, recipe_class: type[Recipe], arguments: Sequence[object] | None = None
    ) -> TrainingConfig:
        """Parse `--config tiny --max_steps 100 --model.hidden_size 64 --options.NAME VALUE`.

        Args:
            recipe_class: its docstring and `Options` complete the help, its name finds the configs of the package.
            arguments: words of the command line; default: the process's own.

        Raises:
            ValueError: an unknown name or a wrong value.
            FileNotFoundError: no such config file.
            SystemExit: `--help` or `--print_config`, after printing.
        """
        name = recipe_class.name
        parser = FieldParser(
            OWNER,
            usage=f"melreformer train {name} --config NAME --dataset DIR [--FIELD VALUE ...]",
            description=inspect.getdoc(recipe_class).split("\n\n")[0],
            epilog=_EPILOG.format(name=name, configs=", ".join(configs_of(name)) or "none"),
        )
        parser.add_config()
        parser.add_fields(cls, "settings of every training", skip=("options",))
        parser.add_fields(recipe_class.Options, f"options of the recipe {name}", prefix="options.")
        words = sys.argv[1:] if arguments is None else arguments
        values = parser.parse(words, lambda config: find_config(config, name))
        return cls(**{"options": {}, **values})

    def to_dict(self) -> dict:
        """All fields as JSON-ready values."""
        return {**dataclasses.asdict(self), "adam_betas": list(self.adam_betas)}


__all__ = ["TrainingConfig", "build_dataclass", "option"]
