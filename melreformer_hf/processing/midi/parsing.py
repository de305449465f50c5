"""MIDI files to arrays of events.

Long runs of channel messages, which is what MIDI files consist of, are found by a regular expression and taken apart as
arrays; everything else is read event by event. Whatever breaks the standard's rules is refused with the byte it stands at:
files come from strangers, and a reader that guesses reads other music than was written.
"""

from __future__ import annotations

import io
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TypeAlias

import numpy as np

MidiSource: TypeAlias = "str | os.PathLike | bytes | io.BufferedIOBase"

DEFAULT_TEMPO = 500_000  # microseconds per quarter note, until a file says otherwise
MAX_HOURS = 100
NOTE_OFF, NOTE_ON, CONTROL_CHANGE, PROGRAM_CHANGE = 0x80, 0x90, 0xB0, 0xC0
_TEMPO, _OTHER = 0xFF, 0  # in the column of status bytes
_META, _END_OF_TRACK, _SET_TEMPO = 0xFF, 0x2F, 0x51
_SYSTEM_EXCLUSIVE = (0xF0, 0xF7)
# Data bytes of messages that belong on a cable, not in a file; some programs write them nevertheless.
_SYSTEM_SIZES = {0xF1: 1, 0xF2: 2, 0xF3: 1, 0xF6: 0, 0xF8: 0, 0xFA: 0, 0xFB: 0, 0xFC: 0, 0xFE: 0}
_HEADER = 8
_TICK, _STATUS, _FIRST, _SECOND, _PLACE = range(5)
# Of one event: the time since the last one, perhaps a status byte, two data bytes. Possessive, so that nothing is tried
# twice; at least 16, as setting up arrays for fewer costs more than it saves; at most 65,536, which bounds the matcher.
_WAIT, _STATUS_BYTE, _DATA = rb"[\x80-\xff]{0,3}+[\x00-\x7f]", rb"[\x80-\xbf\xe0-\xef]", rb"[\x00-\x7f]{2}"
_RUN = re.compile(rb"(?:%b%b?+%b){16,65536}+" % (_WAIT, _STATUS_BYTE, _DATA), re.DOTALL)
_TOLD_RUN = re.compile(
    rb"%b%b%b(?:%b%b?+%b){15,65535}+" % (_WAIT, _STATUS_BYTE, _DATA, _WAIT, _STATUS_BYTE, _DATA), re.DOTALL
)


@dataclass(frozen=True)
class MidiEvents:
    """Events of all tracks in the order of time; at the same time in the order of tracks.

    Args:
        seconds: (event,) float64 from the beginning: the running sum of `steps`.
        steps: (event,) float64 seconds since the event before.
        status: (event,) int64 status byte of channel messages, 0 and 255 of other events.
        first: (event,) int64 first data byte.
        second: (event,) int64 second data byte.
    """

    seconds: np.ndarray
    steps: np.ndarray
    status: np.ndarray
    first: np.ndarray
    second: np.ndarray


def read_content(source: MidiSource) -> tuple[bytes, str]:
    """Bytes of a MIDI source, and what to call it in messages.

    Raises:
        FileNotFoundError: the path does not exist.
        TypeError: the source is neither path, bytes nor binary file.
    """
    if isinstance(source, (str, os.PathLike)):
        return Path(source).read_bytes(), str(source)
    if isinstance(source, (bytes, bytearray)):
        return bytes(source), "the MIDI bytes"
    if hasattr(source, "read"):
        return source.read(), "the MIDI stream"
    raise TypeError(f"A MIDI source must be a path, bytes or a binary file, got {type(source).__name__}.")


def read_events(source: MidiSource) -> MidiEvents:
    """Events of a MIDI file.

    Args:
        source: path, bytes or binary file.

    Raises:
        ValueError: the file is damaged, of type 2, counts in SMPTE frames or lasts over 100 hours; the byte is named.
        FileNotFoundError: the path does not exist.
    """
    content, name = read_content(source)
    division, table = _read_tracks(content, name)
    if table.shape[1] and (np.diff(table[_TICK]) < 0).any():
        table = table[:, np.argsort(table[_TICK], kind="stable")]
    tempos = np.flatnonzero(table[_STATUS] == _TEMPO)
    # A tempo counts from the event after it; what counts before the first is 120 quarter notes a minute.
    last = np.searchsorted(tempos, np.arange(table.shape[1])) - 1
    lengths = np.append(DEFAULT_TEMPO, table[_FIRST, tempos])[last + 1] * 1e-6 / division
    steps = np.diff(table[_TICK], prepend=0) * lengths
    seconds = np.cumsum(steps)
    if len(seconds) and seconds[-1] > MAX_HOURS * 3600:
        event = int(np.searchsorted(seconds, MAX_HOURS * 3600, side="right"))
        _refuse(
            name, f"an event at {seconds[event] / 3600:,.0f} hours", int(table[_PLACE, event]), f"{MAX_HOURS} hours"
        )
    return MidiEvents(seconds, steps, table[_STATUS], table[_FIRST], table[_SECOND])


def _refuse(name: str, what: str, place: int, limit: str | None = None) -> NoReturn:
    rule = f"; files of at most {limit} are read" if limit else ""
    raise ValueError(f"{name} is not a readable MIDI file: {what} at byte {place}{rule}.")


def _read_tracks(content: bytes, name: str) -> tuple[int, np.ndarray]:
    """Ticks per quarter note, and the events of all tracks, (5, event) int64, one track after the other."""
    if content[:4] != b"MThd":
        _refuse(name, f"{content[:4]!r} instead of b'MThd'", 0)
    size = int.from_bytes(content[4:_HEADER])
    if size < 6 or _HEADER + size > len(content):
        _refuse(name, f"a header of {size} bytes in a file of {len(content)}", 4)
    kind, count, division = (int.from_bytes(content[at : at + 2]) for at in (_HEADER, _HEADER + 2, _HEADER + 4))
    _check_header(kind, division, name)
    at, found, reader = _HEADER + size, 0, _Reader(content, name)
    while found < count:
        if at + _HEADER > len(content):
            _refuse(name, f"the end of the file, {count - found:,} of {count:,} tracks missing,", len(content))
        size = int.from_bytes(content[at + 4 : at + _HEADER])
        end = at + _HEADER + size
        if end > len(content):
            _refuse(name, f"a chunk of {size:,} bytes, {end - len(content):,} more than the file has,", at)
        # Chunks of other kinds are to be passed over, says the standard.
        if content[at : at + 4] == b"MTrk":
            reader.read_track(at + _HEADER, end, found)
            found += 1
        at = end
    return division, reader.table()


def _check_header(kind: int, division: int, name: str) -> None:
    if kind == 2:
        raise ValueError(
            f"{name} is a MIDI file of type 2 (independent patterns); only types 0 and 1 have one timeline."
        )
    if kind > 2:
        _refuse(name, f"the unknown type {kind}", _HEADER)
    if not 0 < division < 0x8000:
        raise ValueError(f"{name} counts time in SMPTE frames or not at all; only ticks per quarter note are read.")


class _Reader:
    """Reads tracks, one after the other.

    Args:
        content: of the file.
        name: for messages.
    """

    def __init__(self, content: bytes, name: str) -> None:
        self.content, self.file_name = content, name
        self.values = np.frombuffer(content, dtype=np.uint8)
        self.single: list[tuple[int, int, int, int, int]] = []
        self.tables: list[np.ndarray] = []

    def read_track(self, start: int, end: int, number: int) -> None:
        """Read the events between two places of the file."""
        self.at, self.end, self.number = start, end, number
        self.now, self.running = 0, 0
        while self.at < self.end:
            # What follows a message with one data byte and has no status byte has one data byte, too.
            pattern = _RUN if 0x80 <= self.running < PROGRAM_CHANGE or self.running >= 0xE0 else _TOLD_RUN
            run = pattern.match(self.content, self.at, self.end)
            if run:
                self._flush()
                self.tables.append(self._run(run.end()))
            elif self._event():
                break

    def table(self) -> np.ndarray:
        """(5, event) int64: tick, status, data bytes (the first of a tempo is its value), place in the file."""
        self._flush()
        return np.concatenate([np.zeros((5, 0), dtype=np.int64), *self.tables], axis=1)

    def _flush(self) -> None:
        if self.single:
            self.tables.append(np.array(self.single, dtype=np.int64).T)
            self.single = []

    @property
    def name(self) -> str:
        return f"{self.file_name}, track {self.number}"

    def _run(self, end: int) -> np.ndarray:
        """Messages with two data bytes each up to `end`, which the regular expression has checked."""
        values = self.values[self.at : end]
        # Only the last byte of a time and the data bytes are below 128: three of each event.
        low = np.flatnonzero(values < 0x80)
        times, firsts, seconds = low[0::3], low[1::3], low[2::3]
        table = np.empty((5, len(times)), dtype=np.int64)
        starts = np.append(0, seconds[:-1] + 1)
        delta, longer = values[times].astype(np.int64), times - starts
        for digit in (1, 2, 3):
            has = np.flatnonzero(longer >= digit)
            delta[has] += (values[times[has] - digit].astype(np.int64) & 0x7F) << 7 * digit
        table[_TICK] = np.cumsum(delta) + self.now
        told = np.maximum.accumulate(np.where(firsts - times == 2, np.arange(len(times)), -1))
        table[_STATUS] = np.where(told >= 0, values[firsts[told] - 1], self.running)
        table[_FIRST], table[_SECOND], table[_PLACE] = values[firsts], values[seconds], starts + self.at
        self.now, self.running, self.at = int(table[_TICK, -1]), int(table[_STATUS, -1]), end
        return table

    def _event(self) -> bool:
        """One event of any kind; whether it ends the track."""
        place = self.at
        self.now += self._number("time", place)
        status = self._byte("an event", place)
        if status < 0x80:
            if not self.running:
                _refuse(self.name, f"data byte {status} without a status byte before it", self.at - 1)
            status, self.at = self.running, self.at - 1
        if status == _META:
            return self._meta(place)
        if status in _SYSTEM_EXCLUSIVE:
            self._data(self._number("length", place), "a system exclusive message", place)
            self.running = 0
            self.single.append((self.now, _OTHER, 0, 0, place))
            return False
        if status >= 0xF0 and status not in _SYSTEM_SIZES:
            _refuse(self.name, f"status byte {status}, which does not exist,", self.at - 1)
        one = status & 0xE0 == PROGRAM_CHANGE  # program change, channel pressure
        data = self._data(_SYSTEM_SIZES.get(status, 1 if one else 2), "a message", place)
        if any(value > 0x7F for value in data):
            _refuse(self.name, f"a data byte above 127 in the message of status byte {status}", place)
        self.running = status if status < 0xF0 else 0
        kind = status if status < 0xF0 else _OTHER
        self.single.append((self.now, kind, *data, *[0] * (2 - len(data)), place))
        return False

    def _meta(self, place: int) -> bool:
        kind = self._byte("a meta event", place)
        size = self._number("length", place)
        data = self._data(size, f"a meta event of kind {kind}", place)
        if kind == _END_OF_TRACK:
            return True
        if kind != _SET_TEMPO:
            self.single.append((self.now, _OTHER, 0, 0, place))
            return False
        tempo = int.from_bytes(data)
        if size != 3 or tempo == 0:
            _refuse(self.name, f"a tempo of {size} bytes, {tempo} microseconds per quarter note,", place)
        self.single.append((self.now, _TEMPO, tempo, 0, place))
        return False

    def _byte(self, what: str, place: int) -> int:
        if self.at >= self.end:
            _refuse(self.name, f"{what} that the track's end cuts off", place)
        self.at += 1
        return self.content[self.at - 1]

    def _data(self, size: int, what: str, place: int) -> bytes:
        if self.at + size > self.end:
            _refuse(self.name, f"{what} of {size:,} bytes where its track has {self.end - self.at:,} left", place)
        self.at += size
        return self.content[self.at - size : self.at]

    def _number(self, what: str, place: int) -> int:
        """A number of seven bits per byte, four bytes at most."""
        value = 0
        for _ in range(4):
            byte = self._byte(f"a {what}", place)
            value = value << 7 | byte & 0x7F
            if byte < 0x80:
                return value
        _refuse(self.name, f"a {what} of more than four bytes", place)


__all__ = ["MidiEvents", "MidiSource", "read_content", "read_events"]
