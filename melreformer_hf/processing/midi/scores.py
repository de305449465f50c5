"""Notes and pedal as one MIDI file."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from melreformer_hf.processing.midi.notes import MidiNote, import_mido, notes_to_midi
from melreformer_hf.processing.midi.pedal import merge_intervals

if TYPE_CHECKING:
    from mido import MidiFile

_SUSTAIN, _DOWN, _UP = 64, 127, 0


def piece_to_midi(notes: Iterable[MidiNote], pedal: Iterable[tuple[int, int]] = ()) -> MidiFile:
    """MIDI file of notes and of the sustain pedal, which every channel gets.

    Args:
        notes: in any order.
        pedal: when it is down, as intervals (down, up) in ticks of 10 ms.

    Raises:
        ValueError: a note is out of range, or there are more instruments than channels.
        ImportError: mido is not installed.
    """
    mido = import_mido()
    midi = notes_to_midi(notes)
    changes = [change for down, up in merge_intervals(pedal) for change in ((down, _DOWN), (up, _UP))]
    for track in midi.tracks:
        channel = track[0].channel
        placed, tick = [], 0
        for message in track:
            tick += message.time
            # Before the notes of its tick, but after the track's program: a note under the pedal begins with it down.
            placed.append((tick, int(message.type != "program_change") * 2, message))
        for place, value in changes:
            message = mido.Message("control_change", channel=channel, control=_SUSTAIN, value=value)
            placed.append((place, 1, message))
        placed.sort(key=lambda entry: entry[:2])
        before = 0
        track.clear()
        for place, _, message in placed:
            track.append(message.copy(time=place - before))
            before = place
    return midi


__all__ = ["piece_to_midi"]
