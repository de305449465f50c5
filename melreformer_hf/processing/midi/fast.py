"""Notes of MIDI files by symusic's C++ reader, for whole collections.

symusic is imported when a file is read.
"""

from __future__ import annotations

import numpy as np

from melreformer_hf.processing.midi.notes import (
    DRUMS,
    TICKS_PER_SECOND,
    MidiNote,
    MidiSource,
    check_header,
    read_content,
)
from melreformer_hf.processing.midi.pedal import merge_intervals

_DEFAULT_TEMPO = 500_000  # microseconds per quarter note, until a file says otherwise
_HEADER_SIZE = 14


def _import_symusic():
    try:
        import symusic
    except ImportError as error:
        raise ImportError(
            "Fast reading of MIDI files needs the package symusic: pip install melreformer_hf[midi]"
        ) from error
    return symusic


def _score(source: MidiSource):
    symusic = _import_symusic()
    content, name = read_content(source)
    try:
        score = symusic.Score.from_midi(content)
    except RuntimeError as error:
        raise ValueError(f"{name} is not a readable MIDI file: {error}.") from error
    kind, division = (int.from_bytes(content[at : at + 2], signed=True) for at in (8, _HEADER_SIZE - 2))
    check_header(kind, division, name)
    return score


class _Clock:
    """Seconds of file ticks under a file's tempos."""

    def __init__(self, score) -> None:
        tempos = {0: _DEFAULT_TEMPO} | {tempo.time: tempo.mspq for tempo in sorted(score.tempos, key=lambda t: t.time)}
        self.ticks = np.fromiter(tempos, dtype=np.int64)
        self.lengths = np.fromiter(tempos.values(), dtype=np.float64) * 1e-6 / score.ticks_per_quarter
        self.seconds = np.concatenate([[0.0], np.cumsum(np.diff(self.ticks) * self.lengths[:-1])])

    def __call__(self, ticks: np.ndarray) -> np.ndarray:
        index = np.searchsorted(self.ticks, ticks, side="right") - 1
        return self.seconds[index] + (ticks - self.ticks[index]) * self.lengths[index]


def read_notes_fast(source: MidiSource) -> list[MidiNote]:
    """Notes of a MIDI file in the order of onset, instrument and pitch.

    Differences from `read_notes`, which is exact: times that fall half-way between two ticks of 10 ms may be rounded to
    the other one; notes that the file never ends are left out; simultaneous notes are sorted, not in the file's order.

    Args:
        source: path, bytes or binary file.

    Raises:
        ValueError: the file is damaged, of type 2, or counts in SMPTE frames.
        FileNotFoundError: the path does not exist.
        ImportError: symusic is not installed.
    """
    score = _score(source)
    clock, rows = _Clock(score), []
    for track in score.tracks:
        columns = track.notes.numpy()
        starts = clock(columns["time"].astype(np.int64))
        lengths = clock(columns["time"].astype(np.int64) + columns["duration"]) - starts
        onsets, durations = (np.rint(TICKS_PER_SECOND * seconds).astype(np.int64) for seconds in (starts, lengths))
        instrument = DRUMS if track.is_drum else track.program
        values = (onsets, durations, columns["pitch"], np.full_like(onsets, instrument), columns["velocity"])
        rows += zip(*(column.tolist() for column in values), strict=True)
    rows.sort(key=lambda row: (row[0], row[3], row[2]))
    return [MidiNote(*row) for row in rows]


def read_pedal_fast(source: MidiSource) -> list[tuple[int, int]]:
    """When the pedal is down, as `read_pedal`, but for pedals that are left down or stand in a track without notes.

    Argument and errors are those of `read_notes_fast`.
    """
    score = _score(source)
    clock, intervals = _Clock(score), []
    for track in score.tracks:
        columns = track.pedals.numpy()
        begins = columns["time"].astype(np.int64)
        pair = (clock(begins), clock(begins + columns["duration"]))
        begins, ends = (np.rint(TICKS_PER_SECOND * seconds).astype(np.int64).tolist() for seconds in pair)
        intervals += zip(begins, ends, strict=True)
    return merge_intervals(intervals)


__all__ = ["read_notes_fast", "read_pedal_fast"]
