"""Probabilities of onsets, sounding and offsets, step after step, become notes."""

from __future__ import annotations

import numpy as np

from melreformer_hf.models.note_ear.configuration_note_ear import NoteEarConfig
from melreformer_hf.processing.midi.notes import TICKS_PER_SECOND, MidiNote

ONSET, FRAME, OFFSET, VELOCITY = range(4)
_PEAK_REACH = 2  # steps to each side over which a peak is the highest
_FIRST_END = 2  # steps after its onset in which a note does not end: it has to begin to sound first


def _shifted(values: np.ndarray, by: int) -> np.ndarray:
    """Rows moved by some steps within a padded (step, key); the middle rows only."""
    return values[_PEAK_REACH + by : len(values) - _PEAK_REACH + by]


def find_peaks(padded: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Peaks over time and where between the steps they lie.

    Targets are triangles around the true time, so that the higher neighbour says to which side of the step it lies and
    how far: Kong et al., High-resolution piano transcription (arXiv 2010.01815), formula 3.

    Args:
        padded: (step + 4, key) probabilities, two steps of context before and after.
        threshold: a peak is above it.

    Returns:
        (step, key) bool, and (step, key) fractions of a step in -0.5..0.5 to be added to the step's number.
    """
    middle, before, after = (_shifted(padded, by) for by in (0, -1, 1))
    peaks = middle > threshold
    for by in range(1, _PEAK_REACH + 1):
        # Of equal neighbours the first is the peak.
        peaks &= (middle > _shifted(padded, -by)) & (middle >= _shifted(padded, by))
    lower = np.minimum(before, after)
    fractions = (after - before) / (2 * np.maximum(middle - lower, 1e-6))
    return peaks, np.clip(fractions, -0.5, 0.5)


class NoteDecoder:
    """Turns what the ear hears into notes, any number of steps at a time; what it remembers is one note per key.

    Args:
        config: thresholds, keys and clock.
    """

    def __init__(self, config: NoteEarConfig) -> None:
        self.config = config
        self._held = np.zeros((_PEAK_REACH, 4, config.num_keys), dtype=np.float32)
        self._step = 0  # number of the next step that is decided
        self._begun = np.full(config.num_keys, -1)  # step of a sounding note's onset, -1 where none sounds
        self._onset = np.zeros(config.num_keys)  # its place between the steps
        self._velocity = np.zeros(config.num_keys)

    def feed(self, heard: np.ndarray, last: bool = False) -> list[MidiNote]:
        """Notes that end within what is decided now, in the order of their ends.

        Args:
            heard: (step, 4, key) probabilities of onset, sounding, offset, and velocities in 0..1.
            last: whether nothing follows; notes that still sound then end with the last step.
        """
        after = _PEAK_REACH if last else 0
        heard = np.pad(heard.astype(np.float32), ((0, after), (0, 0), (0, 0)))
        held = np.concatenate([self._held, heard])
        notes: list[MidiNote] = []
        if len(held) > 2 * _PEAK_REACH:
            notes = self._decide(held)
        self._held = held[max(0, len(held) - 2 * _PEAK_REACH) :]
        if last:
            for key in np.flatnonzero(self._begun >= 0):
                notes.append(self._end(int(key), self._step))
        return notes

    def _decide(self, held: np.ndarray) -> list[MidiNote]:
        starts, start_fractions = find_peaks(held[:, ONSET], self.config.onset_threshold)
        ends, end_fractions = find_peaks(held[:, OFFSET], self.config.offset_threshold)
        middle = held[_PEAK_REACH:-_PEAK_REACH]
        silent = middle[:, FRAME] < self.config.frame_threshold
        notes: list[MidiNote] = []
        for row in range(len(middle)):
            sounding = (self._begun >= 0) & (self._step - self._begun >= _FIRST_END)
            for key in np.flatnonzero(sounding & (ends[row] | silent[row]) & ~starts[row]):
                notes.append(self._end(int(key), self._step + end_fractions[row, key] * ends[row, key]))
            for key in np.flatnonzero(starts[row]):
                place = self._step + start_fractions[row, key]
                if self._begun[key] >= 0:  # struck again
                    notes.append(self._end(int(key), place))
                self._begun[key], self._onset[key] = self._step, place
                self._velocity[key] = middle[row, VELOCITY, key]
            self._step += 1
        return notes

    def _end(self, key: int, place: float) -> MidiNote:
        # A step's number is the place of its middle.
        onset, release = ((step + 0.5) * self.config.step_in_s for step in (self._onset[key], place))
        self._begun[key] = -1
        tick = max(0, round(onset * TICKS_PER_SECOND))
        length = max(1, round(release * TICKS_PER_SECOND) - tick)
        velocity = int(np.clip(round(float(self._velocity[key]) * 127), 1, 127))
        return MidiNote(tick, length, key + self.config.lowest_pitch, 0, velocity)


__all__ = ["FRAME", "OFFSET", "ONSET", "VELOCITY", "NoteDecoder", "find_peaks"]
