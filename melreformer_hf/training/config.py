"""The settings of one training: a frozen dataclass, read from YAML, overridden on the command line."""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from melreformer_hf._text import suggest

T = TypeVar("T")
MIXED_PRECISION = ("no", "bf16", "fp16")
OPTIMIZERS = ("adamw", "muon")


def option(default: Any, help: str) -> Any:
    """A dataclass field with the sentence that `--help` prints for it."""
    return dataclasses.field(default=default, metadata={"help": help})


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Everything the loop needs to know; what only one recipe needs lies in `model` and `options`.

    Raises:
        ValueError: a field breaks its rule, or a key is unknown; the message names field, rule and value.
    """

    dataset: str = option("", "folder made by `melreformer data build`, or the id of one on the Hub")
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
    num_workers: int = option(1, "processes that prepare batches; 0 prepares them in the loop")
    prefetch_batches: int = option(4, "batches each worker prepares ahead")
    cache_minutes: float = option(120.0, "minutes of decoded audio each worker keeps in memory")
    max_nonfinite_steps: int = option(
        20, "updates in a row that may be skipped for infinite gradients before an error"
    )
    gradient_checkpointing: bool = option(False, "save memory: activations of the model's blocks are computed twice")
    cpu: bool = option(False, "train on the CPU although there is an accelerator")
    progress_bar: bool = option(True, "show a progress bar")
    model: dict = dataclasses.field(
        default_factory=dict, metadata={"help": "fields of the model's configuration, --model.NAME VALUE"}
    )
    options: dict = dataclasses.field(
        default_factory=dict, metadata={"help": "fields of the recipe's options, --options.NAME VALUE"}
    )

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
            ("dataset", bool(self.dataset), "be given: a folder made by `melreformer data build`, or a Hub id"),
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
        return build_dataclass(cls, _merge(_read_yaml(path), overrides or {}), "The training config")

    @classmethod
    def from_command_line(cls, recipe_class: type, arguments: Sequence[str] | None = None) -> TrainingConfig:
        """Parse `--config FILE --max_steps 100 --model.hidden_size 64 --options.NAME VALUE`.

        Args:
            recipe_class: its docstring and `Options` complete the help.
            arguments: words of the command line; default: the process's own.
        """
        parser = _parser(cls, recipe_class)
        known, rest = parser.parse_known_args(arguments)
        overrides = {key: value for key, value in vars(known).items() if value is not None and key != "config"}
        for name, value in _nested(parser, rest):
            section, key = name.split(".", 1)
            overrides.setdefault(section, {})[key] = value
        try:
            base = _read_yaml(known.config) if known.config else {}
            return build_dataclass(cls, _merge(base, overrides), "The training config")
        except (ValueError, FileNotFoundError) as error:
            parser.error(str(error))

    def to_dict(self) -> dict:
        """All fields as JSON-ready values."""
        return {**dataclasses.asdict(self), "adam_betas": list(self.adam_betas)}


def build_dataclass(cls: type[T], values: Mapping[str, Any], owner: str) -> T:
    """Build a dataclass from plain values: unknown keys are refused with a suggestion, types are checked.

    Raises:
        ValueError: an unknown key, or a value of the wrong type; names both.
    """
    hints = typing.get_type_hints(cls)
    known = [field.name for field in dataclasses.fields(cls)]
    for key in values:
        if key not in known:
            raise ValueError(f"{owner} has no field {key!r} (received {values[key]!r}). {suggest(key, known)}")
    return cls(**{key: _convert(value, hints[key], f"{owner}'s field {key!r}") for key, value in values.items()})


def _convert(value: Any, hint: Any, where: str) -> Any:
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        if value is None or value in ("none", "null"):
            return None
        hint = next(choice for choice in typing.get_args(hint) if choice is not type(None))
    origin = typing.get_origin(hint) or hint
    try:
        if origin is tuple:
            parts = value.replace(",", " ").split() if isinstance(value, str) else value
            inner = typing.get_args(hint)
            return tuple(_convert(part, inner[0], where) for part in parts)
        if origin is bool and isinstance(value, str):
            return {"true": True, "false": False, "yes": True, "no": False}[value.lower()]
        if origin is int and isinstance(value, float) and not value.is_integer():
            raise ValueError
        if origin in (int, float) and not isinstance(value, bool):
            return origin(value)
    except (ValueError, TypeError, KeyError):
        pass
    else:
        if isinstance(value, origin):
            return value
    raise ValueError(f"{where} must be {getattr(hint, '__name__', hint)}, got {value!r}.")


def parse_yaml(text: str) -> Any:
    """Plain values of a YAML text, in which 1e-5 is a number as in YAML 1.2; the library knows only 1.0e-5."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), "-+0123456789"
    )
    return yaml.load(text, Loader)


def _read_yaml(path: str | os.PathLike) -> dict:
    import yaml

    if not Path(path).is_file():
        raise FileNotFoundError(f"No config file at {path}.")
    try:
        values = parse_yaml(Path(path).read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold `key: value` lines, got {type(values).__name__}.")
    return values


def _merge(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict:
    merged = dict(base)
    for key, value in overrides.items():
        both_mappings = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = {**merged[key], **value} if both_mappings else value
    return merged


def _parser(cls: type, recipe_class: type) -> argparse.ArgumentParser:
    lines = ["fields of the model's configuration: --model.NAME VALUE, or under `model:` in the YAML file", ""]
    lines += ["options of this recipe (--options.NAME VALUE, or under `options:` in the YAML file):"]
    lines += [
        f"  {field.name} (default {field.default!r}): {field.metadata.get('help', '')}"
        for field in dataclasses.fields(recipe_class.Options)
    ]
    parser = argparse.ArgumentParser(
        description=(recipe_class.__doc__ or "").strip().split("\n")[0],
        epilog="\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", help="YAML file with any of these settings")
    for field in dataclasses.fields(cls):
        if field.name in ("model", "options"):
            continue
        text = f"{field.metadata['help']} (default {field.default!r})".replace("%", "%%")
        parser.add_argument(f"--{field.name}", help=text, metavar="VALUE")
    return parser


def _nested(parser: argparse.ArgumentParser, words: list[str]) -> list[tuple[str, Any]]:
    import yaml

    pairs, queue = [], list(words)
    while queue:
        word = queue.pop(0)
        name, separator, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not name.startswith(("model.", "options.")):
            choices = [action.option_strings[0] for action in parser._actions]
            parser.error(f"unknown argument {word!r}. {suggest(word.partition('=')[0], choices)}".rstrip())
        if not separator:
            if not queue:
                parser.error(f"{word} needs a value.")
            value = queue.pop(0)
        try:
            pairs.append((name, parse_yaml(value)))
        except yaml.YAMLError:
            parser.error(f"{word} must have a value in YAML, such as 3, 1e-3 or [1, 2], got {value!r}.")
    return pairs


__all__ = ["TrainingConfig", "build_dataclass", "option", "parse_yaml"]
