"""Whether music repeats what a model was trained on, event by event."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from melreformer_hf.nn.phrases import phrases_of


def note_events(rows: np.ndarray) -> np.ndarray:
    """Notes as events that do not depend on the key: (note - 1, 2), the step in pitch and the step in time before each.

    Args:
        rows: (note, 5) of `processing.midi.attributes`, whose time steps are those in which rhythm is compared.
    """
    return np.stack([np.diff(rows[:, 1]), rows[1:, 0]], axis=1)


class EventIndex:
    """All windows of consecutive events of a set of pieces, for finding copies of them.

    Args:
        pieces: events of each, (event, column) integers below 32,768 in size, such as `note_events`.
        length: consecutive events that make a copy.

    Raises:
        ValueError: `length` is below 1.
    """

    def __init__(self, pieces: Iterable[np.ndarray], length: int = 12) -> None:
        if length < 1:
            raise ValueError(f"length must be at least 1 event, got {length}.")
        self.length = length
        parts = [phrases_of(events, length) for events in pieces]
        self.known = np.unique(np.concatenate([np.empty(0, dtype=np.uint64), *parts]))

    def copied(self, events: np.ndarray) -> np.ndarray:
        """(window,) bool, which windows of `length` events occur in one of the pieces."""
        numbers = phrases_of(events, self.length)
        # `known` is sorted: half a million phrases are searched, not sorted again, for every piece.
        places = np.searchsorted(self.known, numbers).clip(max=max(len(self.known) - 1, 0))
        return self.known[places] == numbers if len(self.known) else np.zeros(len(numbers), dtype=bool)


__all__ = ["EventIndex", "note_events"]
