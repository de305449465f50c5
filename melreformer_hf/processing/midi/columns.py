"""What a MIDI file plays, as arrays: starts and ends of notes, the notes they make, the pedal.

Source: Thickstun et al., Anticipatory Music Transformer (arXiv 2306.08620), original repository
jthickstun/anticipation; its reading is reproduced to the tick. Times are the running float sum of the seconds between the
merged messages, rounded half to even.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from melreformer_hf.processing.midi.parsing import (
    CONTROL_CHANGE,
    NOTE_OFF,
    NOTE_ON,
    PROGRAM_CHANGE,
    MidiEvents,
    MidiSource,
    read_events,
)

TICKS_PER_SECOND = 100
NUM_PITCHES = 128
DRUMS = 128
NUM_INSTRUMENTS = 129
UNKNOWN_DURATION = -1
_DRUM_CHANNEL = 9
_NUM_CHANNELS = 16
_SUSTAIN, _HALF = 64, 64
_ROUNDS = 16


def ticks_of(seconds: np.ndarray) -> np.ndarray:
    """Seconds to ticks of 10 ms, half to even, int64."""
    return np.rint(TICKS_PER_SECOND * seconds).astype(np.int64)


@dataclass(frozen=True)
class ChangeColumns:
    """Starts and ends of notes in the order of time, all (change,).

    Args:
        place: index among the events.
        seconds: from the beginning.
        starts: whether a note starts.
        pitch: 0..127.
        instrument: 0..127, 128 for drums.
        channel: 0..15.
        velocity: 0..127.
    """

    place: np.ndarray
    seconds: np.ndarray
    starts: np.ndarray
    pitch: np.ndarray
    instrument: np.ndarray
    channel: np.ndarray
    velocity: np.ndarray


def change_columns(events: MidiEvents) -> ChangeColumns:
    """Starts and ends of notes among the events of a file."""
    message = events.status & 0xF0
    place = np.flatnonzero((message == NOTE_ON) | (message == NOTE_OFF))
    channel = events.status[place] & 0x0F
    velocity = events.second[place]
    return ChangeColumns(
        place=place,
        seconds=events.seconds[place],
        starts=(message[place] == NOTE_ON) & (velocity > 0),
        pitch=events.first[place],
        instrument=_instruments(events, place, channel),
        channel=channel,
        velocity=velocity,
    )


def _instruments(events: MidiEvents, place: np.ndarray, channel: np.ndarray) -> np.ndarray:
    """What each channel plays at the events `place`: its last program before, the piano without one."""
    instrument = np.where(channel == _DRUM_CHANNEL, DRUMS, 0)
    changes = np.flatnonzero(events.status & 0xF0 == PROGRAM_CHANGE)
    for own in np.unique(events.status[changes] & 0x0F):
        if own != _DRUM_CHANNEL:
            of_channel = changes[events.status[changes] & 0x0F == own]
            playing = channel == own
            last = np.searchsorted(of_channel, place[playing])
            instrument[playing] = np.append(0, events.first[of_channel])[last]
    return instrument


def seconds_since(events: MidiEvents, changes: ChangeColumns) -> np.ndarray:
    """(change,) seconds since the start or end before: the steps of all events in between, added one after the other."""
    begins = np.append(0, changes.place[:-1] + 1)[: len(changes.place)]
    lengths = changes.place - begins + 1
    sums = events.steps[begins]
    # Neither NumPy's sums nor differences of running sums round as one addition after the other does.
    for index in range(1, _ROUNDS):
        more = np.flatnonzero(lengths > index)
        sums[more] += events.steps[begins[more] + index]
    for index in np.flatnonzero(lengths > _ROUNDS):
        sums[index] = np.cumsum(events.steps[begins[index] : changes.place[index] + 1])[-1]
    return sums


def note_columns(changes: ChangeColumns) -> np.ndarray:
    """Notes of starts and ends, in the order of their starts.

    A note ends at the first end of its pitch on its channel while the channel plays the same instrument; a program
    change in between leaves it without an end.

    Returns:
        (5, note) int64: onset and duration in ticks (`UNKNOWN_DURATION` of notes without an end), pitch, instrument,
        velocity.
    """
    starts = np.flatnonzero(changes.starts)
    onset = ticks_of(changes.seconds[starts])
    duration = np.full(len(starts), UNKNOWN_DURATION, dtype=np.int64)
    key = (changes.instrument * NUM_PITCHES + changes.pitch) * _NUM_CHANNELS + changes.channel
    begins, ends = _first_in_first_out(key, changes.starts)
    duration[np.searchsorted(starts, begins)] = ticks_of(changes.seconds[ends] - changes.seconds[begins])
    return np.stack([onset, duration, changes.pitch[starts], changes.instrument[starts], changes.velocity[starts]])


def _first_in_first_out(key: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which start belongs to which end: an end takes the earliest open start of its key, or is passed over.

    Args:
        key: (change,) what must be equal.
        starts: (change,) whether it is a start.

    Returns:
        starts and ends that belong together, (pair,) indices each.
    """
    order = np.argsort(key, kind="stable")
    grouped, opens = key[order], starts[order]
    group = np.cumsum(np.diff(grouped, prepend=grouped[:1]) != 0)
    # Open notes as if every end had one; where this falls to a new low within its key, an end had none. Each key lies
    # lower than all before it, so that one running minimum serves them all.
    height = np.cumsum(np.where(opens, 1, -1))
    first = np.flatnonzero(np.diff(group, prepend=-1))
    floor = np.append(0, height)[first][group] if len(first) else height
    lowered = height - floor - group * (len(key) + 1)
    before = np.minimum.accumulate(np.append(0, lowered))[:-1]
    vain = ~opens & (lowered < np.minimum(before, -group * (len(key) + 1)))
    begins, ends = order[opens], order[~opens & ~vain]
    begin_groups, end_groups = group[opens], group[~opens & ~vain]
    # The n-th end of a key takes its n-th start.
    counts = np.bincount(end_groups, minlength=len(first))
    rank = np.arange(len(begins)) - np.searchsorted(begin_groups, begin_groups)
    return begins[rank < counts[begin_groups]], ends


def pressed_intervals(events: MidiEvents) -> list[tuple[int, int]]:
    """When the sustain pedal of each channel is down, (down, up) in ticks, channel by channel."""
    place = np.flatnonzero((events.status & 0xF0 == CONTROL_CHANGE) & (events.first == _SUSTAIN))
    intervals: list[tuple[int, int]] = []
    for channel in np.unique(events.status[place] & 0x0F):
        own = place[events.status[place] & 0x0F == channel]
        pressed = events.second[own] >= _HALF
        # Only what changes something counts; the pedal is up before the first.
        turns = np.flatnonzero(np.diff(pressed, prepend=False))
        ticks = ticks_of(np.append(events.seconds[own[turns]], events.seconds[-1]))
        intervals += zip(ticks[0:-1:2].tolist(), ticks[1::2].tolist(), strict=False)
    return intervals


def read_note_columns(source: MidiSource) -> np.ndarray:
    """Notes of a MIDI file as `note_columns` gives them; errors are those of `read_events`."""
    return note_columns(change_columns(read_events(source)))


__all__ = [
    "DRUMS",
    "NUM_INSTRUMENTS",
    "NUM_PITCHES",
    "TICKS_PER_SECOND",
    "UNKNOWN_DURATION",
    "ChangeColumns",
    "change_columns",
    "note_columns",
    "pressed_intervals",
    "read_note_columns",
    "seconds_since",
    "ticks_of",
]
