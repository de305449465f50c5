"""From prepared items to one batch: equal shapes are stacked, unequal lengths padded and masked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch


def _pad(name: str, values: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    lengths = [value.shape[-1] if value.ndim else -1 for value in values]
    if len({value.shape[:-1] for value in values}) > 1 or -1 in lengths:
        shapes = sorted({tuple(value.shape) for value in values})
        raise ValueError(f"{name!r} must have one shape in a batch, its last axis apart; got {shapes}.")
    first, longest = values[0], max(lengths)
    padded = first.new_zeros(len(values), *first.shape[:-1], longest)
    for row, value in zip(padded, values, strict=True):
        row[..., : value.shape[-1]] = value
    inside = torch.arange(longest) < torch.tensor(lengths)[:, None]
    return {name: padded, f"{name}_mask": inside}


def collate(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One batch of items.

    Tensors of equal shape are stacked. Tensors whose last axis differs are padded with zeros at its end, and
    `<key>_mask` (batch, length), bool, is true where there was something. Numbers become tensors, everything else
    (names, labels) stays a list.

    Args:
        items: at least one, all with the same keys.

    Raises:
        ValueError: no items, different keys, or tensors that differ in another axis than the last.
    """
    if not items:
        raise ValueError("items must hold at least one item, got none.")
    keys = list(items[0])
    for item in items:
        if item.keys() != items[0].keys():
            raise ValueError(f"All items of a batch must have the same keys, got {sorted(keys)} and {sorted(item)}.")
    batch: dict[str, Any] = {}
    for key in keys:
        values = [item[key] for item in items]
        if all(isinstance(value, torch.Tensor) for value in values):
            equal = len({value.shape for value in values}) == 1
            batch |= {key: torch.stack(values)} if equal else _pad(key, values)
        elif all(isinstance(value, (bool, int, float)) for value in values):
            batch[key] = torch.tensor(values)
        else:
            batch[key] = values
    return batch


__all__ = ["collate"]
