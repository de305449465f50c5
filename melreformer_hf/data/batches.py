"""Batches of prepared items, made in worker processes, in an order that workers do not change."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from melreformer_hf.data.collation import collate
from melreformer_hf.data.streams import ItemStream

Prepare = Callable[[dict, torch.Generator], Mapping[str, Any]]


@dataclasses.dataclass
class Batch:
    """What a training step is given.

    Args:
        tensors: see `collation.collate`; what is no tensor stays a list.
        anchor: of the batch's last item, for `ItemStream.advance`.
    """

    tensors: dict[str, Any]
    anchor: dict | None = None

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        changed = {
            key: change(value) if isinstance(value, torch.Tensor) else value for key, value in self.tensors.items()
        }
        return Batch(changed, self.anchor)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same with its tensors on `device`."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The same in page-locked memory; the DataLoader calls it."""
        return self._each(lambda tensor: tensor.pin_memory())


def item_generator(seed: int, index: int) -> torch.Generator:
    """The generator of one item: what is drawn for it depends on its place in the sequence alone."""
    # Two odd constants spread neighboring indices over the generator's seeds.
    mixed = (seed * 0x9E3779B97F4A7C15 + index * 0xBF58476D1CE4E5B9) % 2**63
    return torch.Generator().manual_seed(mixed)


class BatchStream(IterableDataset):
    """Endless batches of this process; worker w of n makes the batches w, w + n, ... so that their order never changes.

    Args:
        stream: the items, at the position where the training continues. It is not moved: whoever consumes a batch calls
            `stream.advance(batch_size, batch.anchor)`.
        prepare: makes tensors of an item; runs in the worker.
        batch_size: items per batch.

    Raises:
        ValueError: `batch_size` is below 1.
    """

    def __init__(self, stream: ItemStream, prepare: Prepare, batch_size: int) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        # A copy: the trainer moves its own stream on while workers read ahead.
        self.stream, self.prepare, self.batch_size = copy.copy(stream), prepare, batch_size
        self.first = stream.position

    def batch(self, number: int) -> Batch:
        """Batch `number` of this process, counted from the stream's position."""
        stream, prepared, anchor = self.stream, [], None
        for local in range(number * self.batch_size, (number + 1) * self.batch_size):
            item = stream.item(stream.global_index(self.first + local))
            anchor = item.pop("anchor", None)
            prepared.append(self.prepare(item, item_generator(stream.seed, item["index"])))
        return Batch(collate(prepared), anchor)

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        number, stride = (0, 1) if worker is None else (worker.id, worker.num_workers)
        while True:
            yield self.batch(number)
            number += stride


__all__ = ["Batch", "BatchStream", "item_generator"]
