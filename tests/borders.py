"""Where the range of a setting begins and ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pytest


def check_borders(
    make: Callable[..., object], inside: Mapping[str, Sequence], outside: Mapping[str, Sequence], **others: object
) -> None:
    """What is just inside is accepted, what is just outside refused with the field's name.

    Args:
        make: takes the settings by name.
        inside: by field; a value that is a dict gives several fields at once, where others must move along.
        outside: the same.
        others: of all calls.
    """
    for name, values in inside.items():
        for value in values:
            try:
                make(**{**others, **(value if isinstance(value, dict) else {name: value})})
            except Exception as error:
                raise AssertionError(f"{name}={value!r} must be accepted: {error}") from error
    for name, values in outside.items():
        for value in values:
            # The strict configurations' own error, whose cause is a ValueError, is none itself.
            with pytest.raises(Exception, match=name) as caught:
                make(**{**others, **(value if isinstance(value, dict) else {name: value})})
            assert isinstance(caught.value, ValueError) or isinstance(caught.value.__cause__, ValueError), value


def from_one(*names: str) -> tuple[dict[str, tuple], dict[str, tuple]]:
    """Borders of whole numbers of at least 1."""
    return dict.fromkeys(names, (1,)), dict.fromkeys(names, (0,))
