"""Statistics of notes: what generated and transcribed music has in common with real music, as numbers and distances.

Each function takes the notes of one excerpt; `note_statistics_distance` compares sets of excerpts. Times are in ticks of
10 ms where they are `MidiNote`s', in seconds where a parameter says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from melreformer_hf.processing.midi.notes import DRUMS, TICKS_PER_SECOND, UNKNOWN_DURATION_TICKS, MidiNote

CHORD_SECONDS = 0.03  # onsets that are so near one another are heard as one
# Half-octave bins of the time between onsets: 0.03, 0.042, 0.06, ... 7.68 s; what is longer is in the last.
INTERVAL_EDGES = CHORD_SECONDS * 2.0 ** (np.arange(17) / 2)
# Probe-tone ratings of the twelve pitch classes above the tonic (Krumhansl and Kessler 1982): major, minor.
_PROFILES = (
    (6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88),
    (6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17),
)
STATISTICS = ("density", "polyphony", "inter_onset", "pitch_class_entropy", "key_stability")


def _columns(notes: Sequence[MidiNote], seconds: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Onsets and releases in seconds, cut to the excerpt, and pitches, of all but drums, by onset."""
    if not (math.isfinite(seconds) and seconds > 0):
        raise ValueError(f"seconds must be the excerpt's length, above 0, got {seconds}.")
    kept = sorted((note for note in notes if note.instrument != DRUMS), key=lambda note: note.onset)
    rows = [
        (note.onset, UNKNOWN_DURATION_TICKS if note.duration is None else note.duration, note.pitch) for note in kept
    ]
    onsets, durations, pitches = np.array(rows, dtype=np.int64).reshape(-1, 3).T
    inside = onsets < seconds * TICKS_PER_SECOND
    begins, ends = onsets / TICKS_PER_SECOND, (onsets + durations) / TICKS_PER_SECOND
    return begins[inside], np.minimum(ends[inside], seconds), pitches[inside]


def note_density(notes: Sequence[MidiNote], seconds: float) -> float:
    """Notes per second of an excerpt that begins at tick 0.

    Args:
        notes: of the excerpt; drums and what begins after its end do not count.
        seconds: the excerpt's length.

    Raises:
        ValueError: `seconds` is not above 0.
    """
    return len(_columns(notes, seconds)[0]) / seconds


def note_polyphony(notes: Sequence[MidiNote], seconds: float) -> float:
    """Keys that are held on average over the excerpt; arguments as of `note_density`."""
    begins, ends, _ = _columns(notes, seconds)
    return float((ends - begins).sum()) / seconds


def inter_onset_histogram(notes: Sequence[MidiNote], seconds: float) -> np.ndarray:
    """How often each time between consecutive onsets occurs: (16,) counts, the bins' edges are `INTERVAL_EDGES` in seconds.

    Onsets less than `CHORD_SECONDS` after the first of a chord belong to it. Arguments as of `note_density`.
    """
    counts = np.zeros(len(INTERVAL_EDGES) - 1, dtype=np.int64)
    last = None
    for onset in _columns(notes, seconds)[0]:
        # Half a tick of tolerance: 0.03 s is three ticks, whatever floating point makes of their difference.
        if last is not None and onset - last < CHORD_SECONDS - 0.005:
            continue
        if last is not None:
            place = np.searchsorted(INTERVAL_EDGES, onset - last + 1e-9, side="right") - 1
            counts[min(max(place, 0), len(counts) - 1)] += 1
        last = onset
    return counts


def pitch_class_histogram(
    notes: Sequence[MidiNote], seconds: float, begin: float = 0.0, end: float | None = None
) -> np.ndarray:
    """Seconds for which each pitch class is held between `begin` and `end` (seconds): (12,); arguments as of `note_density`."""
    begins, ends, pitches = _columns(notes, seconds)
    held = np.minimum(ends, seconds if end is None else end) - np.maximum(begins, begin)
    return np.bincount(pitches % 12, weights=np.maximum(held, 0.0), minlength=12)


def pitch_class_entropy(notes: Sequence[MidiNote], seconds: float) -> float:
    """Entropy of the pitch classes in bits: 0 is one pitch class, log2(12) = 3.585 all alike; NaN without notes.

    Arguments as of `note_density`.
    """
    histogram = pitch_class_histogram(notes, seconds)
    if not histogram.sum():
        return math.nan
    shares = histogram[histogram > 0] / histogram.sum()
    return float(-(shares * np.log2(shares)).sum())


def key_correlations(histogram: np.ndarray) -> np.ndarray:
    """Correlation of a pitch-class histogram with the profiles of all keys (Krumhansl and Schmuckler).

    Args:
        histogram: (12,).

    Returns:
        (2, 12): major and minor keys by tonic; zeros where the histogram is flat.
    """
    shifted = np.array([[np.roll(profile, tonic) for tonic in range(12)] for profile in _PROFILES])
    shifted = shifted - shifted.mean(-1, keepdims=True)
    centered = histogram - histogram.mean()
    norm = np.linalg.norm(shifted, axis=-1) * np.linalg.norm(centered)
    return np.divide(shifted @ centered, norm, out=np.zeros((2, 12)), where=norm > 1e-12)


def key_stability(notes: Sequence[MidiNote], seconds: float, window: float = 8.0) -> float:
    """How well the parts of an excerpt keep to the key of the whole.

    The whole's pitch-class histogram names the key; the result is the mean correlation of its profile with the histograms
    of windows that overlap by half. Music that wanders through keys, and such without one, has less.

    Args:
        notes: as of `note_density`.
        seconds: the excerpt's length.
        window: length of the windows in seconds.

    Returns:
        -1 to 1; NaN without notes.

    Raises:
        ValueError: `seconds` or `window` is not above 0.
    """
    if not window > 0:
        raise ValueError(f"window must be above 0 seconds, got {window}.")
    whole = pitch_class_histogram(notes, seconds)
    if not whole.sum():
        return math.nan
    key = np.unravel_index(key_correlations(whole).argmax(), (2, 12))
    starts = np.arange(0.0, max(seconds - window / 2, 1e-9), window / 2)
    parts = [pitch_class_histogram(notes, seconds, start, start + window) for start in starts]
    return float(np.mean([key_correlations(part)[key] for part in parts if part.sum()]))


def note_statistics(notes: Sequence[MidiNote], seconds: float) -> dict[str, float | np.ndarray]:
    """All of `STATISTICS` of one excerpt; arguments as of `note_density`."""
    return {
        "density": note_density(notes, seconds),
        "polyphony": note_polyphony(notes, seconds),
        "inter_onset": inter_onset_histogram(notes, seconds),
        "pitch_class_entropy": pitch_class_entropy(notes, seconds),
        "key_stability": key_stability(notes, seconds),
    }


def wasserstein_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Area between the distribution functions of two sets of numbers: how far values have to move on average.

    Args:
        first: (item,), in any unit.
        second: (item,) in the same unit.

    Raises:
        ValueError: a set is empty.
    """
    first, second = np.sort(np.asarray(first, dtype=np.float64)), np.sort(np.asarray(second, dtype=np.float64))
    for name, values in (("first", first), ("second", second)):
        if values.ndim != 1 or not len(values):
            raise ValueError(f"{name} must be (item,) with at least one number, got shape {values.shape}.")
    places = np.sort(np.concatenate([first, second]))
    below = [np.searchsorted(values, places[:-1], side="right") / len(values) for values in (first, second)]
    return float((np.abs(below[0] - below[1]) * np.diff(places)).sum())


def note_statistics_distance(first: Sequence[dict], second: Sequence[dict]) -> dict[str, float]:
    """How far two sets of excerpts are apart in each of `STATISTICS`.

    Args:
        first: of `note_statistics`, one per excerpt.
        second: the same of the other set.

    Returns:
        Wasserstein distances in the statistics' own units (notes per second, keys, bits, correlation); of `inter_onset` the
        share of the intervals that lie in other bins (total variation, 0 to 1). Excerpts without notes, whose entropy and key
        are unknown, count in the others only.

    Raises:
        ValueError: a set is empty, or has no notes at all.
    """
    found = {}
    for name in STATISTICS:
        columns = [np.stack([np.asarray(item[name], dtype=np.float64) for item in part]) for part in (first, second)]
        if name == "inter_onset":
            sums = [column.sum(0) for column in columns]
            if not all(counts.sum() for counts in sums):
                raise ValueError(
                    "first and second must have excerpts with two onsets at least, got none in one of them."
                )
            shares = [counts / counts.sum() for counts in sums]
            found[name] = float(np.abs(shares[0] - shares[1]).sum() / 2)
        else:
            found[name] = wasserstein_distance(*(column[~np.isnan(column)] for column in columns))
    return found


__all__ = [
    "CHORD_SECONDS",
    "INTERVAL_EDGES",
    "STATISTICS",
    "inter_onset_histogram",
    "key_correlations",
    "key_stability",
    "note_density",
    "note_polyphony",
    "note_statistics",
    "note_statistics_distance",
    "pitch_class_entropy",
    "pitch_class_histogram",
    "wasserstein_distance",
]
