"""Key tables between original checkpoints and the package's names, read both ways."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch


def _pattern(template: str) -> re.Pattern:
    """`{N}` stands for a layer's number; a template that ends in a dot is the beginning of a name, else the whole."""
    end = "(?P<rest>.+)" if template.endswith(".") else ""
    return re.compile(re.escape(template).replace(r"\{N\}", r"(\d+)") + end)


def _fill(template: str, match: re.Match) -> str:
    numbers = [value for value in match.groups() if value is not None]
    rest = match.groupdict().get("rest")
    if rest is not None:
        numbers.pop()
    for number in numbers:
        template = template.replace("{N}", number, 1)
    return template + (rest or "")


def rename_keys(
    state_dict: Mapping[str, torch.Tensor], table: Sequence[tuple[str, str]], origin: str, reverse: bool = False
) -> dict[str, torch.Tensor]:
    """State dict under the names of the table's other column.

    Args:
        state_dict: tensors by name.
        table: rows (original name, our name), `{N}` for numbers, which keep their order; the first row that fits holds.
        origin: what the checkpoint is, for messages.
        reverse: from our names to the original's.

    Raises:
        ValueError: a name is in no row, or two names become one.
    """
    rows = [(_pattern(row[1] if reverse else row[0]), row[0] if reverse else row[1]) for row in table]
    renamed: dict[str, torch.Tensor] = {}
    for key, value in state_dict.items():
        found = ((pattern.fullmatch(key), template) for pattern, template in rows)
        name = next((_fill(template, match) for match, template in found if match), None)
        if name is None:
            raise ValueError(f"The {origin} checkpoint does not fit: unexpected key {key!r}.")
        if name in renamed:
            raise ValueError(f"The {origin} checkpoint does not fit: key {key!r} is a second source of {name!r}.")
        renamed[name] = value
    return renamed


__all__ = ["rename_keys"]
