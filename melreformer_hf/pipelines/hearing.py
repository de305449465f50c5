"""What an instrument is given to play: pieces in any form, and notes as they become known while a piece is written."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

import numpy as np

from melreformer_hf.nn.sounding import SoundingNotes
from melreformer_hf.pipelines.composing import Score
from melreformer_hf.processing.midi.notes import DRUMS, TICKS_PER_SECOND, MidiNote, check_notes
from melreformer_hf.processing.midi.sounding import sounding_notes

Music: TypeAlias = "str | os.PathLike | bytes | io.BufferedIOBase | Score | Sequence[MidiNote]"
Snapshot: TypeAlias = "tuple[SoundingNotes, int]"
Snapshots: TypeAlias = "Iterator[Snapshot]"
# A string that the pedal holds is not heard any more after so long; without an end, a pedal that is never lifted would
# keep all notes.
_LONGEST_SECONDS = 60.0
_FAR = 1 << 50  # ticks: the pedal has not been lifted yet
RING_SECONDS = 1.0
_FIRST_CHUNK_FRAMES = 64
# What plays notes: a model, or the recorded piano that comes with the package.
SYNTHS = ("performer", "sampled")


def score_of(midi: Music, name: str = "midi") -> Score:
    """A piece that was given in any way.

    Args:
        midi: a file (path, bytes or binary file), a score, or notes.
        name: of the argument, for the error.

    Raises:
        ValueError: a damaged file, a note out of range, or nothing to play.
        FileNotFoundError: the path does not exist.
        ImportError: mido is not installed and a file was given.
    """
    if isinstance(midi, Score):
        score = Score(check_notes(midi.notes), list(midi.pedal))
    elif isinstance(midi, (str, os.PathLike, bytes, bytearray)) or hasattr(midi, "read"):
        score = Score.read(midi)
    else:
        score = Score(check_notes(midi))
    if not any(note.instrument != DRUMS for note in score.notes):
        held = "only drums, which are not played" if len(score.notes) else "no notes"
        what = midi if isinstance(midi, (str, os.PathLike)) else name
        raise ValueError(f"{what} holds {held}: there is nothing to play.")
    return score


def score_end(notes: Sequence[MidiNote], pedal: Iterable[tuple[int, int]]) -> float:
    """Seconds until the last note of a piece has died away after its damper fell."""
    release = sounding_notes(notes, pedal).release
    return (float(release.max()) if len(release) else 0.0) + RING_SECONDS


def chunk_end(first: int, chunk: int) -> int:
    """The frame after a chunk that begins at `first`: the first chunk of a piece is a short one, so that it comes early."""
    return first + (chunk if first else min(chunk, _FIRST_CHUNK_FRAMES))


def chunk_edges(first: int, num_frames: int, chunk: int) -> Iterator[tuple[int, int]]:
    """(first frame, the frame after the last) of the chunks from `first` on to the end of a piece."""
    while first < num_frames:
        until = min(chunk_end(first, chunk), num_frames)
        yield first, until
        first = until


def score_snapshots(
    notes: Sequence[MidiNote], pedal: Iterable[tuple[int, int]], num_frames: int, chunk: int, rate: float, tail: float
) -> Snapshots:
    """A piece that is known as a whole.

    Args:
        notes: of the piece.
        pedal: intervals (down, up) in ticks.
        num_frames: its length.
        chunk: frames of a snapshot.
        rate: frames per second.
        tail: seconds that a note may be heard after its damper fell.

    Yields:
        (notes that are heard in the chunk, the frame after its last).
    """
    heard = sounding_notes(notes, pedal)
    for first, until in chunk_edges(0, num_frames, chunk):
        yield heard.where((heard.onset * rate < until) & ((heard.release + tail) * rate > first)), until


class _Written:
    """The end of a piece that is being written: its latest notes, and what the pedal did under them."""

    def __init__(self, pedal: Iterable[tuple[int, int]], tail: float) -> None:
        self.notes: list[MidiNote] = []
        self.pedal, self.tail = list(pedal), tail
        self.pressed: int | None = None  # since when the pedal is down
        self.last: int = 0

    def add(self, note: MidiNote, down: bool | None) -> None:
        """A note that begins with the one before at the earliest; `down` where it says how the pedal is from here on."""
        self.last = note.onset
        if down is not None and self.pressed is None:
            # What was said of the pedal before the first note that tells itself counts up to that note.
            self.pedal = [(begin, min(end, note.onset)) for begin, end in self.pedal if begin < note.onset]
        if down and self.pressed is None:
            self.pressed = note.onset
        elif down is False and self.pressed is not None:
            self.pedal.append((self.pressed, note.onset))
            self.pressed = None
        self.notes.append(note)

    def end(self) -> None:
        """No further note comes: the pedal is lifted with the last one."""
        if self.pressed is not None:
            self.pedal.append((self.pressed, self.last + 1))
            self.pressed = None

    def sounding(self) -> SoundingNotes:
        """What is known; releases that wait for the pedal are infinite."""
        pedal = self.pedal if self.pressed is None else [*self.pedal, (self.pressed, _FAR)]
        heard = sounding_notes(self.notes, pedal)
        heard.release[heard.release >= _FAR / TICKS_PER_SECOND] = math.inf
        return heard

    def forget(self, now: float) -> None:
        """Leave out what is not heard any more after `now` seconds."""
        heard = self.sounding()
        kept = (heard.release + self.tail > now) & (heard.onset + _LONGEST_SECONDS > now)
        names = set(zip(np.rint(heard.onset[kept] * TICKS_PER_SECOND).astype(int), heard.pitch[kept], strict=True))
        self.notes = [note for note in self.notes if (note.onset, note.pitch) in names]
        earliest = min((note.onset for note in self.notes), default=self.last)
        self.pedal = [(begin, end) for begin, end in self.pedal if end >= earliest]


def written_snapshots(
    written: Iterable[tuple[MidiNote, bool | None]],
    pedal: Iterable[tuple[int, int]],
    num_frames: int | None,
    chunk: int,
    rate: float,
    tail: float,
) -> Snapshots:
    """A piece that is written while it is heard; no more of it is asked for than the next chunk needs.

    Args:
        written: notes in the order of their onsets, each with whether the pedal is down from its onset on; `None` leaves
            that to `pedal`.
        pedal: intervals (down, up) in ticks, for the notes before the first that tells itself.
        num_frames: length of the piece; `None` ends it when its last note has died away.
        chunk: frames of a snapshot.
        rate: frames per second.
        tail: seconds that a note may be heard after its damper fell.

    Yields:
        (notes that are heard, the frame before whose beginning all is known).
    """
    piece, done = _Written(pedal, tail), 0
    for note, down in written:
        # Whatever comes, comes with this note or later.
        known = math.floor(note.onset * rate / TICKS_PER_SECOND)
        known = known if num_frames is None else min(known, num_frames)
        while known >= chunk_end(done, chunk):
            done = chunk_end(done, chunk)
            yield piece.sounding(), done
            piece.forget(done / rate)
        piece.add(note, down)
    piece.end()
    heard = piece.sounding()
    if num_frames is None:
        last = float(heard.release.max()) if len(heard) else 0.0
        num_frames = max(done, math.ceil((last + RING_SECONDS) * rate))
    for _, until in chunk_edges(done, num_frames, chunk):
        yield heard, until


__all__ = [
    "RING_SECONDS",
    "SYNTHS",
    "Music",
    "Snapshot",
    "Snapshots",
    "score_end",
    "score_of",
    "score_snapshots",
    "written_snapshots",
]
