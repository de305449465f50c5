"""The sustain pedal of MIDI files (controller 64): when it is down."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from melreformer_hf.processing.midi.columns import pressed_intervals
from melreformer_hf.processing.midi.parsing import MidiSource, read_events


def merge_intervals(intervals: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The union of intervals (begin, end), in order, without empty ones."""
    merged: list[tuple[int, int]] = []
    for begin, end in sorted(interval for interval in intervals if interval[1] > interval[0]):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((begin, end))
    return merged


def read_pedal(source: MidiSource) -> list[tuple[int, int]]:
    """When the pedal of any channel is down, as intervals (down, up) in ticks of 10 ms; a pedal left down ends with the file.

    Args:
        source: path, bytes or binary file.

    Raises:
        ValueError: the file is damaged, of type 2, counts in SMPTE frames or lasts over 100 hours; the byte is named.
        FileNotFoundError: the path does not exist.
    """
    return merge_intervals(pressed_intervals(read_events(source)))


def pedal_at(onsets: np.ndarray, intervals: Iterable[tuple[int, int]]) -> np.ndarray:
    """Whether the pedal is down at each onset, (note,) bool; intervals are (down, up) in ticks, the end excluded."""
    ordered = merge_intervals(intervals)
    if not ordered:
        return np.zeros(len(onsets), dtype=bool)
    begins, ends = np.array(ordered).T
    place = np.searchsorted(begins, onsets, side="right") - 1
    return (place >= 0) & (np.asarray(onsets) < ends[np.maximum(place, 0)])


__all__ = ["merge_intervals", "pedal_at", "read_pedal"]
