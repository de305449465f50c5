"""From plain values and words of a command line to dataclasses: `jsonargparse` reads, merges and checks.

The library reads YAML, lets the command line override it field by field, nests (`--options.NAME`, `--model.NAME`), checks
types and prints the outcome. What is added: help from the dataclasses' fields, and messages that name field, rule and
value on one line and suggest what was meant.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from melreformer_hf._text import suggest

T = TypeVar("T")
_FLAGS = ("help", "print_config")  # no value follows


def option(default: Any, help: str) -> Any:
    """A dataclass field with the sentence that `--help` prints for it."""
    if isinstance(default, (dict, list)):
        return dataclasses.field(default_factory=default.copy, metadata={"help": help})
    return dataclasses.field(default=default, metadata={"help": help})


def build_dataclass(cls: type[T], values: Mapping[str, Any], owner: str) -> T:
    """Build a dataclass from plain values: unknown keys are refused with a suggestion, types are checked.

    Args:
        cls: a dataclass, keyword-only.
        values: field names and values as YAML or JSON gives them.
        owner: what the values belong to, for messages.

    Raises:
        ValueError: an unknown key, or a value of the wrong type; names both.
    """
    hints = _hints(cls)
    check_names(values, hints, owner)
    fields = FieldParser(owner)
    for name, hint in hints.items():
        fields.parser.add_argument(f"--{name}", type=hint)
    try:
        parsed = fields.parser.parse_object(dict(values), defaults=False)
    except argparse.ArgumentError as error:
        raise ValueError(f"{owner}: {told(error, hints)}") from error
    return cls(**{name: parsed[name] for name in values})


def check_names(values: Iterable[str], known: Iterable[str], owner: str) -> None:
    """Refuse names that are not known.

    Raises:
        ValueError: names the owner and the unknown one, and suggests what was meant.
    """
    names = list(known)
    for key in values:
        if key not in names:
            raise ValueError(f"{owner} has no field {key!r}. {suggest(key, names)}".rstrip())


class FieldParser:
    """A command line made of the fields of dataclasses.

    Args:
        owner: what is being set, for messages.
        usage: first line of the help.
        description: what follows it.
        epilog: what ends it.
    """

    def __init__(self, owner: str, usage: str = "", description: str = "", epilog: str = "") -> None:
        from jsonargparse import ArgumentParser, DefaultHelpFormatter

        class Help(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
            """Types and defaults after each help; paragraphs and examples as they are written."""

        self.owner, self.kinds = owner, {}
        self.parser = ArgumentParser(
            usage=usage,
            description=description,
            epilog=epilog,
            exit_on_error=False,
            allow_abbrev=False,  # `--max_step` is a slip, not `--max_steps`
            formatter_class=Help,
        )

    def add_config(self) -> None:
        """Add `--config FILE` and `--print_config`."""
        text = "a config that comes with the package, such as tiny, or a YAML file; what is typed overrides it"
        self.parser.add_argument("--config", action="config", help=text, metavar="NAME")

    def add_fields(self, cls: type, title: str, prefix: str = "", skip: Sequence[str] = ()) -> None:
        """Add `--NAME` for each field of a dataclass, with its type, default and help.

        Args:
            cls: the dataclass.
            title: heading of the help.
            prefix: put before the names, such as `options.`.
            skip: fields that are left out.
        """
        group, hints = self.parser.add_argument_group(title), _hints(cls)
        for field in dataclasses.fields(cls):
            if field.name in skip:
                continue
            name, hint = f"{prefix}{field.name}", hints[field.name]
            default = field.default_factory() if field.default is dataclasses.MISSING else field.default
            flag = {"nargs": "?", "const": True} if hint is bool else {}
            text = field.metadata.get("help", "")
            group.add_argument(f"--{name}", type=hint, default=default, help=text, **flag)
            self.kinds[name] = hint

    def parse(self, words: Sequence[object], find_config: Callable[[str], Path] = Path) -> dict[str, Any]:
        """Plain values of a command line over those of its `--config` files, which may stand anywhere in it.

        `--max-steps` means `--max_steps`, `none` means YAML's `null`, and lists may go without brackets.

        Args:
            words: of the command line.
            find_config: the file that a value of `--config` means.

        Raises:
            ValueError: unknown names, wrong values, files that are no YAML.
            SystemExit: `--help` or `--print_config`, after printing.
        """
        try:
            parsed = self.parser.parse_args(self._normalized([str(word) for word in words], find_config)).as_dict()
        except argparse.ArgumentError as error:
            raise ValueError(f"{self.owner}: {told(error, self.kinds)}") from error
        parsed.pop("config", None)
        return parsed

    def _normalized(self, words: list[str], find_config: Callable[[str], Path]) -> list[str]:
        configs: list[str] = []
        rest: list[str] = []
        queue = list(words)
        while queue:
            word = queue.pop(0)
            if not word.startswith("--"):
                rest.append(word)
                continue
            name, given, value = word.removeprefix("--").partition("=")
            name = name.replace("-", "_")
            if not given and name not in _FLAGS and queue and not queue[0].startswith("--"):
                given, value = "=", queue.pop(0)
            if name == "config" and given:
                path = find_config(value)
                read_yaml(path)  # its messages name the file
                configs.append(f"--config={path}")
            else:
                rest.append(f"--{name}={_plain(value, self.kinds.get(name))}" if given else f"--{name}")
        return [*configs, *rest]  # files first: what is typed overrides what is written


def _hints(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {
        field.name: dict[str, Any] if hints[field.name] is dict else hints[field.name]
        for field in dataclasses.fields(cls)
    }


def _plain(value: str, hint: Any) -> str:
    if value in ("none", "None"):
        return "null"
    is_list = typing.get_origin(hint) in (tuple, list)
    return f"[{value}]" if is_list and not value.lstrip().startswith(("[", "(")) else value


def told(error: argparse.ArgumentError, kinds: Mapping[str, Any]) -> str:
    """The library's message on one line, in the words of this package's messages."""
    text = str(error)
    if unknown := re.search(r"(?i:unrecognized) arguments: ([^\s=]+)", text):
        word = unknown.group(1)
        names = [f"--{name}" for name in (*kinds, "config", "help", "print_config")]
        return f"unknown argument {word!r}. {suggest(word, names)}".rstrip()
    if unknown := re.search(r"Option '([^']+)' is not accepted", text):
        return f"no field {unknown.group(1)!r}. {suggest(unknown.group(1), kinds)}".rstrip()
    key = re.search(r'Parser key "([\w.]+)"', text)
    value = re.search(r"(?:Got value|Given value): (.*)", text, re.DOTALL)
    if key and value and key.group(1) in kinds:
        return f"{key.group(1)} must be {type_name(kinds[key.group(1)])}, got {' '.join(value.group(1).split())}."
    return " ".join(text.split())


def type_name(hint: Any) -> str:
    """A type in words: `int or null`, `a list of float`."""
    parts = typing.get_args(hint)
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(type_name(part) for part in parts)
    if origin in (tuple, list):
        inner = " and ".join(type_name(part) for part in parts if part is not Ellipsis)
        return (
            f"a list of {inner}"
            if len(parts) == 1 or Ellipsis in parts
            else f"a list [{inner.replace(' and ', ', ')}]"
        )
    if origin is dict or hint is dict:
        return "a dict (names and values)"
    return {type(None): "null", bool: "bool (true or false)"}.get(hint, getattr(hint, "__name__", str(hint)))


def read_yaml(path: str | os.PathLike) -> dict:
    """Names and values of a YAML or JSON file, in which 1e-5 is a number as in YAML 1.2.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No file of settings at {path}.")
    from jsonargparse import get_loader

    try:
        values = get_loader("yaml")(path.read_text(encoding="utf-8")) or {}
    except Exception as error:
        if not isinstance(error, ValueError) and not type(error).__module__.startswith("yaml"):
            raise
        raise ValueError(f"{path} is no valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold `name: value` lines, got {type(values).__name__}.")
    return values


__all__ = ["FieldParser", "build_dataclass", "check_names", "option", "read_yaml", "told", "type_name"]
