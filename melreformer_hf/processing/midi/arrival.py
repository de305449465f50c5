"""Event lists of the arrival-time scheme: three numbers per note (time, duration, note), and what is done with them.

Source: Thickstun et al., Anticipatory Music Transformer (arXiv 2306.08620), original repository
jthickstun/anticipation. An event's note number tells what it is: a note, a rest that fills a gap, a control (a note that
is known in advance), or a separator. Event lists may be longer than the 100 s that the time block of the vocabulary
covers; a list becomes model input after `clip_events` and `shift_events`, or as the rows of `melreformer_hf.data.midi`.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Iterator

from melreformer_hf.processing.midi.notes import (
    NUM_PITCHES,
    TICKS_PER_SECOND,
    UNKNOWN_DURATION_TICKS,
    MidiNote,
    check_notes,
)
from melreformer_hf.processing.midi.vocabulary import ARRIVAL, MAX_DURATION_TICKS

EVENT_SIZE = 3
DELTA_TICKS = 5 * TICKS_PER_SECOND
DEFAULT_VELOCITY = 72
DURATION = ARRIVAL.first["duration"]
NOTE = ARRIVAL.first["note"]
REST = ARRIVAL.first["rest"]
CONTROL = ARRIVAL.first["control_time"]
SEPARATOR = ARRIVAL.first["separator"]


def triples(events: list[int]) -> Iterator[tuple[int, int, int]]:
    """The events one by one.

    Raises:
        ValueError: the list's length is no multiple of three.
    """
    if len(events) % EVENT_SIZE:
        raise ValueError(f"events must hold three numbers per event, got {len(events)} numbers.")
    numbers = iter(events)
    return zip(numbers, numbers, numbers, strict=True)


def _flat(events: Iterable[tuple[int, int, int]]) -> list[int]:
    return [number for event in events for number in event]


def _time(event: tuple[int, int, int]) -> int:
    return event[0] - CONTROL if event[2] >= CONTROL else event[0]


def _refuse(event: tuple[int, int, int], index: int, step: str, rests: bool = False) -> None:
    if event[2] >= CONTROL or (event[2] == REST and not rests):
        raise ValueError(
            f"{step} needs plain notes{' and rests' if rests else ''}; event {index} is a rest, a control or a separator: "
            f"{event}. Do this step before padding, anticipation and concatenation."
        )


def notes_to_events(notes: Iterable[MidiNote]) -> tuple[list[int], int]:
    """Events of notes, and how many durations had to be cut to 9.99 s.

    Velocities are dropped; unknown durations become 250 ms.

    Raises:
        ValueError: no notes, or a note out of range.
    """
    notes = check_notes(notes)
    if not notes:
        raise ValueError("notes must hold at least one note, got none: an empty piece has no events.")
    events, cut = [], 0
    for onset, duration, pitch, instrument, _ in notes:
        duration = UNKNOWN_DURATION_TICKS if duration is None else duration
        if duration >= MAX_DURATION_TICKS:
            cut, duration = cut + 1, MAX_DURATION_TICKS - 1
        events += (onset, DURATION + duration, NOTE + NUM_PITCHES * instrument + pitch)
    return events, cut


def events_to_notes(events: list[int], velocity: int = DEFAULT_VELOCITY) -> list[MidiNote]:
    """Notes of events: rests are dropped, controls become notes, what follows a separator follows in time.

    Raises:
        ValueError: the list's length is no multiple of three, or an event has no meaning.
    """
    notes, offset, longest = [], 0, 0
    for index, event in enumerate(triples(events)):
        # Not `SEPARATOR in event`: in lists beyond 550 s it is a time like others.
        if event[2] == SEPARATOR:
            if event != (SEPARATOR,) * EVENT_SIZE:
                raise ValueError(f"event {index} mixes a separator with other tokens: {event}.")
            offset, longest = offset + longest, 0
            continue
        if event[2] == REST:
            continue
        time, duration, note = (number - CONTROL for number in event) if event[2] >= CONTROL else event
        if time < 0 or not DURATION <= duration < NOTE or not NOTE <= note < REST:
            raise ValueError(f"event {index} must be a time, a duration and a note, got {event}.")
        instrument, pitch = divmod(note - NOTE, NUM_PITCHES)
        notes.append(MidiNote(time + offset, duration - DURATION, pitch, instrument, velocity))
        longest = max(longest, time + duration - DURATION)
    return notes


def earliest_tick(events: list[int]) -> int:
    """Time in ticks of the earliest event before the first separator; 0 where there is none."""
    before = itertools.takewhile(lambda event: event[2] != SEPARATOR, triples(events))
    return min((_time(event) for event in before), default=0)


def latest_tick(events: list[int]) -> int:
    """Time in ticks of the latest event, whether before or after a separator; 0 where there is none."""
    return max((_time(event) for event in triples(events) if event[2] != SEPARATOR), default=0)


def count_instruments(events: list[int]) -> Counter[int]:
    """Number of notes per instrument, in the order of first use; controls count, rests do not."""
    notes = (note - CONTROL if CONTROL <= note < SEPARATOR else note for _, _, note in triples(events))
    return Counter((note - NOTE) // NUM_PITCHES for note in notes if note < REST)


def longest_gap(events: list[int]) -> int:
    """Longest time in ticks from the beginning to the first event, or between neighbors."""
    gap = before = 0
    for index, event in enumerate(triples(events)):
        _refuse(event, index, "longest_gap", rests=True)
        gap, before = max(gap, event[0] - before), event[0]
    return gap


def pad_events(events: list[int], end: int | None = None, density: int = TICKS_PER_SECOND) -> list[int]:
    """Put rests wherever nothing happens for longer than `density` ticks.

    Args:
        events: notes in the order of time.
        end: last tick to fill up to; `None` or 0 is the last event's.
        density: longest time without an event.

    Raises:
        ValueError: controls or separators among the events.
    """
    padded, before = [], 0

    def fill(until: int, before: int) -> int:
        while until > before + density:
            before += density
            padded.extend((before, DURATION, REST))
        return before

    end = end or latest_tick(events)
    for index, event in enumerate(triples(events)):
        _refuse(event, index, "pad_events", rests=True)
        fill(event[0], before)
        padded.extend(event)
        before = event[0]
    fill(end, before)
    return padded


def split_events(events: list[int], known: Iterable[bool]) -> tuple[list[int], list[int]]:
    """Turn some notes into controls.

    Args:
        events: notes.
        known: per event, whether it becomes a control.

    Returns:
        (remaining events, controls), each in the order of `events`.

    Raises:
        ValueError: the events hold rests, controls or separators.
    """
    remaining, controls = [], []
    for index, (event, is_known) in enumerate(zip(triples(events), known, strict=True)):
        _refuse(event, index, "split_events")
        if is_known:
            controls.extend(number + CONTROL for number in event)
        else:
            remaining.extend(event)
    return remaining, controls


def split_instruments(events: list[int], instruments: Collection[int]) -> tuple[list[int], list[int]]:
    """Turn all notes of some instruments into controls: (remaining events, controls)."""
    return split_events(events, [(note - NOTE) // NUM_PITCHES in instruments for _, _, note in triples(events)])


def anticipate(events: list[int], controls: list[int], delta: int = DELTA_TICKS) -> tuple[list[int], list[int]]:
    """Interleave controls with events, each control about `delta` ticks before its time.

    A control comes in front of the first event whose predecessor is no earlier than `delta` before the control.

    Args:
        events: notes and rests in the order of time.
        controls: controls in the order of time.
        delta: ticks.

    Returns:
        (events and controls, controls that no event was late enough for).

    Raises:
        ValueError: controls or separators among the events.
    """
    waiting = list(triples(controls))[::-1]
    merged, now = [], 0
    for index, event in enumerate(triples(events)):
        _refuse(event, index, "anticipate", rests=True)
        while waiting and now >= _time(waiting[-1]) - delta:
            merged.extend(waiting.pop())
        merged.extend(event)
        now = event[0]
    return merged, _flat(reversed(waiting))


def merge_controls(events: list[int], controls: list[int]) -> list[int]:
    """Make the controls notes again, and sort by time; at the same tick events come first."""
    notes = list(triples(events)) + [tuple(number - CONTROL for number in event) for event in triples(controls)]
    return _flat(sorted(notes, key=lambda event: event[0]))


def clip_events(events: list[int], start: int, end: int, cut_durations: bool = True) -> list[int]:
    """Events that begin in `start..end` ticks, both included.

    Args:
        events: notes, rests and controls.
        start: first tick.
        end: last tick.
        cut_durations: shorten notes that sound beyond `end`.
    """
    kept = []
    for event in triples(events):
        time = _time(event)
        if not start <= time <= end:
            continue
        length = event[1] - DURATION - (CONTROL if event[2] >= CONTROL else 0)
        beyond = max(time + length - end, 0) if cut_durations else 0
        kept.append((event[0], event[1] - beyond, event[2]))
    return _flat(kept)


def shift_events(events: list[int], ticks: int) -> list[int]:
    """Move events in time, up to the first separator: what follows it has its own time.

    Raises:
        ValueError: a time would become negative.
    """
    moved = []
    for index, event in enumerate(triples(events)):
        if event[2] == SEPARATOR:
            ticks = 0
        elif _time(event) + ticks < 0:
            raise ValueError(f"shift_events by {ticks} ticks would begin event {index} before zero: {event}.")
        moved.append((event[0] + ticks, *event[1:]))
    return _flat(moved)


__all__ = [
    "DEFAULT_VELOCITY",
    "DELTA_TICKS",
    "EVENT_SIZE",
    "anticipate",
    "clip_events",
    "count_instruments",
    "earliest_tick",
    "events_to_notes",
    "latest_tick",
    "longest_gap",
    "merge_controls",
    "notes_to_events",
    "pad_events",
    "shift_events",
    "split_events",
    "split_instruments",
    "triples",
]
