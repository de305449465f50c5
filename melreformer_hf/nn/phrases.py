"""Phrases, runs of consecutive events, as numbers; and a memory of those that a model was trained on.

The memory is a Bloom filter (Bloom 1970): a table of bits in which every phrase sets a few. It never forgets a phrase; now and
then it takes another for one that it knows. It holds a phrase in a dozen bits, and no phrase can be read out of it.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import nn

_ODD = np.uint64(0x9E3779B97F4A7C15)  # Fibonacci hashing; 64 bits make accidental matches one in 10^12
_NUM_BITS = 7  # that a phrase sets: at the density that the recipes make one in 600 is mistaken


def event_numbers(events: np.ndarray) -> np.ndarray:
    """A number per event: (..., column) integers below 32,768 in size -> (...) uint64."""
    numbers = np.zeros(events.shape[:-1], dtype=np.uint64)
    for column in np.moveaxis(np.asarray(events, dtype=np.int64), -1, 0):
        numbers = numbers * np.uint64(1 << 16) + (column + (1 << 15)).astype(np.uint64)  # every column in an own range
    return numbers


def phrase_numbers(events: np.ndarray) -> np.ndarray:
    """A number per phrase: (..., event) of `event_numbers` -> (...) uint64."""
    numbers = np.zeros(events.shape[:-1], dtype=np.uint64)
    for event in np.moveaxis(events, -1, 0):
        numbers = (numbers ^ event) * _ODD
        numbers ^= numbers >> np.uint64(29)
    return numbers


def phrases_of(events: np.ndarray, length: int) -> np.ndarray:
    """Numbers of all runs of `length` events: (event, column) -> (event - length + 1,) uint64, none of fewer events."""
    if len(events) < length:
        return np.empty(0, dtype=np.uint64)
    return phrase_numbers(np.lib.stride_tricks.sliding_window_view(event_numbers(events), length))


class PhraseFilter(nn.Module):
    """Remembers phrases; saved with the model that it belongs to.

    Args:
        num_bytes: size of the table; 1.7 bytes per phrase make one error in 600.
        length: events of a phrase.
    """

    def __init__(self, num_bytes: int, length: int) -> None:
        super().__init__()
        self.length = length
        self.register_buffer("table", torch.zeros(num_bytes, dtype=torch.uint8))

    def _places(self, numbers: np.ndarray) -> np.ndarray:
        """(...) uint64 -> (..., _NUM_BITS) int64, the bits of each phrase; of an odd step, so that they differ."""
        low, high = numbers & np.uint64(0xFFFFFFFF), (numbers >> np.uint64(32)) | np.uint64(1)
        steps = np.arange(_NUM_BITS, dtype=np.uint64)
        return ((low[..., None] + high[..., None] * steps) % np.uint64(8 * len(self.table))).astype(np.int64)

    @torch.no_grad()
    def learn(self, pieces: Iterable[np.ndarray]) -> None:
        """Remember all phrases of pieces, (event, column) integers each, besides those that are known already."""
        table = self.table.cpu().numpy().copy()
        for events in pieces:
            places = self._places(phrases_of(events, self.length))
            np.bitwise_or.at(table, places >> 3, (1 << (places & 7)).astype(np.uint8))
        self.table.copy_(torch.from_numpy(table))

    def knows(self, numbers: np.ndarray) -> np.ndarray:
        """(...) of `phrase_numbers` -> (...) bool."""
        places = self._places(numbers)
        bits = self.table.cpu().numpy()[places >> 3] >> (places & 7).astype(np.uint8)
        return (bits & 1).astype(bool).all(-1)

    def completing(self, events: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """Which candidates would complete a phrase that is known.

        Args:
            events: (length - 1, column), the latest last.
            candidates: (candidate, column) events that may follow.

        Returns:
            (candidate,) bool.
        """
        before = np.broadcast_to(event_numbers(events), (len(candidates), self.length - 1))
        return self.knows(phrase_numbers(np.concatenate([before, event_numbers(candidates)[:, None]], axis=1)))


__all__ = ["PhraseFilter", "event_numbers", "phrase_numbers", "phrases_of"]
