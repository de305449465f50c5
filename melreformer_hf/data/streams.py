"""What a training reads: an endless sequence of items, the same whatever the numbers of processes and workers."""

from __future__ import annotations

import abc
from collections.abc import Iterator

import numpy as np

_LARGEST_SEED = 2**64 - 1


class ItemStream(abc.ABC):
    """An endless global sequence of items, of which this process takes every `world_size`-th.

    `item(index)` is a pure function of (seed, index): process r of W takes the items r, r + W, ..., workers divide a
    process's items among themselves, and nobody has to tell anybody anything. A stream that is expensive to enter in the
    middle puts an `anchor` into its items, a JSON-ready note of a place shortly before them; handed to `advance`, it is
    saved with the position and makes resuming cheap.

    Subclasses define `item`, and `seek` where they use anchors.

    Args:
        seed: of the sequence.
        rank: index of this process.
        world_size: number of processes.

    Attributes:
        position: items that this process has consumed; the one place where that is counted.
        anchor: of the last consumed item, `None` before the first or where the stream has none.

    Raises:
        ValueError: `rank` is not in 0..world_size-1.
    """

    def __init__(self, seed: int = 0, rank: int = 0, world_size: int = 1) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in 0..world_size-1, got rank={rank}, world_size={world_size}.")
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.position = 0
        self.anchor: dict | None = None

    @abc.abstractmethod
    def item(self, index: int) -> dict:
        """The item at `index` of the global sequence, with `index` itself under that name."""

    def seek(self, anchor: dict | None) -> None:  # noqa: B027  most streams reach every item at once
        """Prepare for items from `anchor` on; `None` is the beginning of the sequence."""

    @property
    def natural_seed(self) -> int:
        """The seed as numpy's generators take it: not negative, in 64 bits."""
        return self.seed & _LARGEST_SEED

    def random(self, index: int) -> np.random.Generator:
        """What is drawn for the item at `index`: of seed and index alone, no other item's draws change it."""
        # As an array: numpy would make floats of a list with a number beyond 63 bits, which no negative seed survives.
        return np.random.Generator(np.random.Philox(key=np.array([self.natural_seed, index], dtype=np.uint64)))

    def global_index(self, position: int) -> int:
        """Place in the global sequence of this process's item number `position`."""
        return position * self.world_size + self.rank

    def advance(self, items: int, anchor: dict | None = None) -> None:
        """Count items as consumed.

        Args:
            items: how many more.
            anchor: the anchor of the last of them, if it has one.
        """
        self.position += items
        self.anchor = anchor if anchor is not None else self.anchor

    def state_dict(self) -> dict:
        """Where this process stands; plain values, ready for JSON."""
        return {"seed": self.seed, "position": self.position, "anchor": self.anchor}

    def load_state_dict(self, state: dict) -> None:
        """Continue at a saved place.

        Raises:
            ValueError: the state belongs to a stream with another seed.
        """
        if state["seed"] != self.seed:
            raise ValueError(
                f"The saved stream has seed {state['seed']}, this one {self.seed}; resume with the former."
            )
        self.position, self.anchor = state["position"], state.get("anchor")
        self.seek(self.anchor)

    def __iter__(self) -> Iterator[dict]:
        """This process's items from the position on; each one that is taken counts as consumed."""
        while True:
            item = self.item(self.global_index(self.position))
            self.advance(1, item.get("anchor"))
            yield item


__all__ = ["ItemStream"]
