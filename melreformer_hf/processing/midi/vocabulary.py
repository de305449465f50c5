"""Vocabularies of MIDI tokens: which number means what.

Source: `ARRIVAL` (55,028 tokens) and `INTERARRIVAL` (34,025 tokens) are those of the Anticipatory Music Transformer
(arXiv 2306.08620, original repository jthickstun/anticipation). `NOTE_TUPLE` gives the five numbers that its
intermediate form lists per note, which had no vocabulary, a block of token numbers each.
"""

from __future__ import annotations

import bisect
import functools
from collections.abc import Mapping
from itertools import accumulate
from types import MappingProxyType

from melreformer_hf.processing.midi.notes import NUM_INSTRUMENTS, NUM_PITCHES, TICKS_PER_SECOND

MAX_TIME_TICKS = 100 * TICKS_PER_SECOND
MAX_DURATION_TICKS = 10 * TICKS_PER_SECOND
_NUM_NOTES = NUM_INSTRUMENTS * NUM_PITCHES
_PITCHED = ("note", "control_note", "on", "off")


class MidiVocabulary:
    """Blocks of token numbers, one after the other.

    Args:
        blocks: sizes by name, in order.

    Attributes:
        first: first token number of each block.
        size: number of tokens.
    """

    def __init__(self, blocks: Mapping[str, int]) -> None:
        self._names = tuple(blocks)
        self._starts = (0, *accumulate(blocks.values()))
        self.first: Mapping[str, int] = MappingProxyType(dict(zip(blocks, self._starts, strict=False)))
        self.size = self._starts[-1]

    def locate(self, token: int) -> tuple[str, int]:
        """Block of a token number, and the number within the block.

        Raises:
            ValueError: the number is outside the vocabulary.
        """
        if not 0 <= token < self.size:
            raise ValueError(f"MIDI tokens of this scheme are 0..{self.size - 1}, got {token}.")
        index = bisect.bisect_right(self._starts, token) - 1
        return self._names[index], token - self._starts[index]

    @functools.cached_property
    def strings(self) -> list[str]:
        """Every token's name, such as `time_35`, `note_0_60` (instrument and pitch) or `separator`."""
        strings = []
        for index, name in enumerate(self._names):
            count = self._starts[index + 1] - self._starts[index]
            if name in _PITCHED:
                strings += [f"{name}_{value // NUM_PITCHES}_{value % NUM_PITCHES}" for value in range(count)]
            else:
                strings += [name] if count == 1 else [f"{name}_{value}" for value in range(count)]
        return strings

    @functools.cached_property
    def numbers(self) -> dict[str, int]:
        """Token numbers by name."""
        return {string: number for number, string in enumerate(self.strings)}


ARRIVAL = MidiVocabulary(
    {
        "time": MAX_TIME_TICKS,
        "duration": MAX_DURATION_TICKS,
        "note": _NUM_NOTES,
        "rest": 1,
        "control_time": MAX_TIME_TICKS,
        "control_duration": MAX_DURATION_TICKS,
        "control_note": _NUM_NOTES,
        "separator": 1,
        "autoregress": 1,
        "anticipate": 1,
    }
)
INTERARRIVAL = MidiVocabulary({"wait": MAX_DURATION_TICKS, "on": _NUM_NOTES, "off": _NUM_NOTES, "separator": 1})
NOTE_TUPLE = MidiVocabulary(
    {
        "time": MAX_TIME_TICKS,
        "duration": MAX_TIME_TICKS,
        "unknown_duration": 1,
        "pitch": NUM_PITCHES,
        "instrument": NUM_INSTRUMENTS,
        "velocity": 128,
        "separator": 1,
    }
)
VOCABULARIES: Mapping[str, MidiVocabulary] = MappingProxyType(
    {"arrival": ARRIVAL, "interarrival": INTERARRIVAL, "note_tuple": NOTE_TUPLE}
)

__all__ = [
    "ARRIVAL",
    "INTERARRIVAL",
    "MAX_DURATION_TICKS",
    "MAX_TIME_TICKS",
    "NOTE_TUPLE",
    "VOCABULARIES",
    "MidiVocabulary",
]
