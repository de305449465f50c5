"""Arguments of the original programs' constructors: kinds of values, and our fields for them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from melreformer_hf._text import suggest


@dataclass(frozen=True)
class Kind:
    """What an argument may be: in words, for messages, and as a test."""

    words: str
    accepts: Callable[[object], bool]


def _integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: object) -> bool:
    return (_integer(value) or isinstance(value, float)) and math.isfinite(value)


SIZE = Kind("an integer of at least 1", lambda value: _integer(value) and value >= 1)
COUNT = Kind("an integer of at least 0", lambda value: _integer(value) and value >= 0)
INTEGER = Kind("an integer", _integer)
NUMBER = Kind("a finite number", _number)
AMOUNT = Kind("a finite number of at least 0", lambda value: _number(value) and value >= 0)
POSITIVE = Kind("a finite number above 0", lambda value: _number(value) and value > 0)
SHARE = Kind("a number from 0 up to, not including, 1", lambda value: _number(value) and 0 <= value < 1)
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
TEXT = Kind("a string", lambda value: isinstance(value, str))
NONE = Kind("nothing (None)", lambda value: value is None)
EMPTY = Kind("an empty list", lambda value: isinstance(value, (list, tuple)) and not value)
MAPPING = Kind("a mapping", lambda value: isinstance(value, Mapping))
ANYTHING = Kind("anything", lambda value: True)


def several(kind: Kind, count: int | None = None) -> Kind:
    """A list of `count` entries, or of any number but none, all of one kind."""

    def accepts(value: object) -> bool:
        if not isinstance(value, (list, tuple)) or not value or (count is not None and len(value) != count):
            return False
        return all(kind.accepts(each) for each in value)

    return Kind(f"a list{'' if count is None else f' of {count}'}, each entry {kind.words}", accepts)


def either(*kinds: Kind) -> Kind:
    """One of several kinds."""
    return Kind(" or ".join(kind.words for kind in kinds), lambda value: any(kind.accepts(value) for kind in kinds))


SIZES = several(SIZE)


def check_argument(name: str, value: object, kind: Kind, origin: str) -> None:
    """Refuse a value of another kind.

    Raises:
        ValueError: names the argument, its kind and the value.
    """
    if not kind.accepts(value):
        raise ValueError(f"{origin}: argument {name!r} must be {kind.words}, got {value!r}.")


def take_arguments(
    arguments: Mapping,
    names: Mapping[str, tuple[str, Kind]],
    ignored: Mapping[str, Kind],
    origin: str,
    required: Sequence[str] = (),
) -> dict:
    """Our configuration fields of an original's arguments.

    Args:
        arguments: the original's.
        names: original name to ours and the kind of its values.
        ignored: arguments that have no field of ours, and their kinds.
        origin: what they belong to, for messages.
        required: arguments without a default.

    Raises:
        ValueError: the arguments are no mapping; one is unknown, missing, or of another kind.
    """
    if not isinstance(arguments, Mapping):
        raise ValueError(f"{origin}: its arguments must be names and values, got {type(arguments).__name__}.")
    kinds = {name: kind for name, (_, kind) in names.items()} | dict(ignored)
    for key, value in arguments.items():
        if key not in kinds:
            raise ValueError(f"{origin} has no argument {key!r} (received {value!r}). {suggest(key, kinds)}")
        check_argument(key, value, kinds[key], origin)
    for key in required:
        if key not in arguments:
            raise ValueError(f"{origin}: argument {key!r} is missing (the original has no default for it).")
    return {ours: arguments[original] for original, (ours, _) in names.items() if original in arguments}


__all__ = [
    "AMOUNT",
    "ANYTHING",
    "COUNT",
    "EMPTY",
    "FLAG",
    "INTEGER",
    "MAPPING",
    "NONE",
    "NUMBER",
    "POSITIVE",
    "SHARE",
    "SIZE",
    "SIZES",
    "TEXT",
    "Kind",
    "check_argument",
    "either",
    "several",
    "take_arguments",
]
