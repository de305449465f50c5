"""Training rows of MIDI tokens: filters, augmentation by known notes, packing.

Source: Thickstun et al., Anticipatory Music Transformer (arXiv 2306.08620), original repository
jthickstun/anticipation; the same pieces give the same rows, random draws included.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from melreformer_hf.processing.midi.arrival import (
    DELTA_TICKS,
    EVENT_SIZE,
    anticipate,
    count_instruments,
    earliest_tick,
    latest_tick,
    notes_to_events,
    pad_events,
    shift_events,
    split_events,
    split_instruments,
    triples,
)
from melreformer_hf.processing.midi.interarrival import read_changes
from melreformer_hf.processing.midi.notes import TICKS_PER_SECOND, MidiNote, MidiSource, read_notes
from melreformer_hf.processing.midi.vocabulary import ARRIVAL, INTERARRIVAL, MAX_TIME_TICKS

ROW_SIZE = 1024
EVENTS_PER_ROW = (ROW_SIZE - 1) // EVENT_SIZE
NUM_AUGMENTATIONS = 10
SPANS_PER_SECOND = 0.05
_MIN_NOTES = 100
_MIN_TICKS = 10 * TICKS_PER_SECOND
_MAX_TICKS = 3600 * TICKS_PER_SECOND
_MAX_INSTRUMENTS = 16
_SEPARATORS = [ARRIVAL.first["separator"]] * EVENT_SIZE


@dataclass
class RowCounts:
    """What became of the pieces.

    Args:
        rows: rows written.
        rests: rests put in.
        short: pieces left out: under 100 notes or 10 s.
        long: pieces left out: over an hour.
        crowded: pieces left out: more than 16 instruments.
        inexpressible: rows left out: they span 100 s or more.
        truncations: durations (or waits) cut to 9.99 s.
    """

    rows: int = 0
    rests: int = 0
    short: int = 0
    long: int = 0
    crowded: int = 0
    inexpressible: int = 0
    truncations: int = 0


def why_unsuitable(notes: Sequence[MidiNote]) -> str | None:
    """`None` for a piece that is good for training, else `"short"`, `"long"` or `"crowded"` (see `RowCounts`)."""
    if len(notes) < _MIN_NOTES:
        return "short"
    last = max(note.onset for note in notes)
    if last < _MIN_TICKS:
        return "short"
    if last > _MAX_TICKS:
        return "long"
    return "crowded" if len({note.instrument for note in notes}) > _MAX_INSTRUMENTS else None


def split_random(events: list[int], share: float, random: np.random.RandomState) -> tuple[list[int], list[int]]:
    """Every note is known with probability `share`: (remaining events, controls)."""
    return split_events(events, [random.random_sample() < share for _ in triples(events)])


def split_spans(
    events: list[int], spans_per_second: float, random: np.random.RandomState
) -> tuple[list[int], list[int]]:
    """Stretches of five seconds are known, with exponentially distributed pauses: (remaining events, controls)."""
    known, inside, start, end = [], True, 0, 0
    for time, _, _ in triples(events):
        if inside and time >= end:
            inside = False
            start = time + int(TICKS_PER_SECOND * random.exponential(1.0 / spans_per_second))
        if not inside and time >= start:
            inside, end = True, time + DELTA_TICKS
        known.append(inside)
    return split_events(events, known)


def augment(events: list[int], index: int, random: np.random.RandomState) -> tuple[list[int], list[int]]:
    """The `index`-th variant of a piece: (remaining events, controls).

    Of ten variants one is plain, one has known spans, four have randomly known notes at a random rate, four have known
    instruments (plain where the piece has only one).
    """
    kind = index % NUM_AUGMENTATIONS
    if kind == 0:
        return events, []
    if kind == 1:
        return split_spans(events, SPANS_PER_SECOND, random)
    if kind < 6:
        return split_random(events, random.randint(1, 10) / 10.0, random)
    instruments = list(count_instruments(events))
    if len(instruments) == 1:
        return events, []
    count = 1 + random.randint(len(instruments) - 1)
    return split_instruments(events, random.choice(instruments, count, replace=False))


def arrival_rows(
    pieces: Iterable[Sequence[MidiNote]],
    num_variants: int = 1,
    seed: int = 0,
    counts: RowCounts | None = None,
    rest: bool = False,
) -> Iterator[list[int]]:
    """Rows of 1024 arrival-time tokens: a flag (autoregress or anticipate) and 341 events that begin at time zero.

    The variants of all pieces are concatenated, three separators before each. A row's flag is that of the variant that
    was current when the row before it was written.

    Args:
        pieces: notes of each piece, in order of time; unsuitable ones are left out and counted.
        num_variants: variants per piece (1 for validation, 10 in the original's training).
        seed: of the augmentation.
        counts: filled while the rows are drawn.
        rest: whether the events that fill no row at the end are given too, as a shorter one (the original drops them).
    """
    counts = RowCounts() if counts is None else counts
    random, waiting = np.random.RandomState(seed), []
    flag = ARRIVAL.first["autoregress"]
    for notes in pieces:
        reason = why_unsuitable(notes)
        if reason is not None:
            setattr(counts, reason, getattr(counts, reason) + 1)
            continue
        events, cut = notes_to_events(notes)
        end = latest_tick(events)
        for index in range(num_variants):
            remaining, controls = augment(events, index, random)
            variant_flag = ARRIVAL.first["anticipate" if index % NUM_AUGMENTATIONS else "autoregress"]
            flag = flag if waiting else variant_flag
            padded = pad_events(remaining, end)
            counts.truncations += cut
            counts.rests += padded[2::EVENT_SIZE].count(ARRIVAL.first["rest"])
            waiting += _SEPARATORS + anticipate(padded, controls)[0]
            while len(waiting) >= EVENT_SIZE * EVENTS_PER_ROW:
                row, waiting = waiting[: EVENT_SIZE * EVENTS_PER_ROW], waiting[EVENT_SIZE * EVENTS_PER_ROW :]
                row = _from_time_zero(row, counts)
                if row is None:
                    continue
                yield [flag, *row]
                flag = variant_flag
    if rest and waiting:
        row = _from_time_zero(waiting, counts)
        if row is not None:
            yield [flag, *row]


def _from_time_zero(row: list[int], counts: RowCounts) -> list[int] | None:
    """The events of a row, counted; none of one that spans more time than there are tokens for."""
    row = shift_events(row, -earliest_tick(row))
    if latest_tick(row) >= MAX_TIME_TICKS:
        counts.inexpressible += 1
        return None
    counts.rows += 1
    return row


def interarrival_piece(source: MidiSource, counts: RowCounts) -> list[int]:
    """A separator and the interarrival tokens of a piece; nothing of an unsuitable one, which is counted."""
    reason = why_unsuitable(read_notes(source))
    if reason is not None:
        setattr(counts, reason, getattr(counts, reason) + 1)
        return []
    tokens, cut = read_changes(source)
    counts.truncations += cut
    return [INTERARRIVAL.first["separator"], *tokens]


def pack_rows(pieces: Iterable[Sequence[int]], counts: RowCounts, rest: bool = False) -> Iterator[list[int]]:
    """Rows of 1024 tokens: the pieces one after the other.

    Args:
        pieces: tokens of each piece.
        counts: filled while the rows are drawn.
        rest: whether the tokens that fill no row at the end are given too, as a shorter one.
    """
    waiting: list[int] = []
    for piece in pieces:
        waiting += piece
        while len(waiting) >= ROW_SIZE:
            row, waiting = waiting[:ROW_SIZE], waiting[ROW_SIZE:]
            counts.rows += 1
            yield row
    if rest and waiting:
        counts.rows += 1
        yield waiting


def interarrival_rows(sources: Iterable[MidiSource], counts: RowCounts | None = None) -> Iterator[list[int]]:
    """Rows of 1024 interarrival tokens: the pieces one after the other, a separator before each.

    Args:
        sources: MIDI files; unsuitable ones are left out and counted.
        counts: filled while the rows are drawn.
    """
    counts = RowCounts() if counts is None else counts
    return pack_rows((interarrival_piece(source, counts) for source in sources), counts)


__all__ = [
    "RowCounts",
    "arrival_rows",
    "augment",
    "interarrival_piece",
    "interarrival_rows",
    "pack_rows",
    "split_random",
    "split_spans",
    "why_unsuitable",
]
