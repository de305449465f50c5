"""Notes that were heard against notes that were played, as the field counts them: mir_eval.transcription.

Source: Raffel et al., mir_eval: a transparent implementation of common MIR metrics (ISMIR 2014). A note counts as heard
when its pitch is right and its onset within 50 ms; whole notes also when they end within 50 ms, or a fifth of their
length, of the true end; with velocity, also when that is within 0.1 of the true one after the best linear fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np

from melreformer_hf.nn.sounding import SoundingNotes
from melreformer_hf.processing.midi.notes import TICKS_PER_SECOND, UNKNOWN_DURATION_TICKS, MidiNote

ONSET_TOLERANCE_IN_S = 0.05
_SHORTEST_IN_S = 1e-3  # mir_eval refuses notes without a length

Notes: TypeAlias = Sequence[MidiNote] | SoundingNotes | np.ndarray


def note_rows(notes: Notes) -> np.ndarray:
    """Notes as (note, 4) float64: onset and end in seconds, pitch, velocity; every note has a length.

    Args:
        notes: MIDI notes (drums are left out), `SoundingNotes`, or such an array.

    Raises:
        ValueError: an array of another shape, or notes whose end is not known.
    """
    if isinstance(notes, SoundingNotes):
        table = notes.as_arrays()
        rows = np.stack([table.onset, table.release, table.pitch, table.velocity], axis=1)
    elif isinstance(notes, np.ndarray):
        rows = notes.astype(np.float64)
    else:
        held = [
            (note, UNKNOWN_DURATION_TICKS if note.duration is None else note.duration)
            for note in notes
            if note.instrument < 128
        ]
        rows = np.array(
            [
                (note.onset / TICKS_PER_SECOND, (note.onset + length) / TICKS_PER_SECOND, note.pitch, note.velocity)
                for note, length in held
            ],
            dtype=np.float64,
        ).reshape(-1, 4)
    if rows.ndim != 2 or rows.shape[1] != 4 or not np.isfinite(rows).all():
        raise ValueError(
            f"notes must be finite rows (onset, end, pitch, velocity), got {rows.shape} with "
            f"{int((~np.isfinite(rows)).sum())} values that are not finite."
        )
    rows[:, 1] = np.maximum(rows[:, 1], rows[:, 0] + _SHORTEST_IN_S)
    return rows


def transcription_scores(
    estimated: Notes, reference: Notes, onset_tolerance_in_s: float = ONSET_TOLERANCE_IN_S
) -> dict[str, float]:
    """Precision, recall and F1 of a transcription.

    Args:
        estimated: what was heard.
        reference: what was played.
        onset_tolerance_in_s: how far an onset may be off.

    Returns:
        `onset_precision`, `onset_recall`, `onset_f1`; the same of `offset_` (onset and end), `velocity_` (onset and
        velocity) and `offset_velocity_` (all three). Nothing heard of nothing played counts 1, of something 0.

    Raises:
        ValueError: see `note_rows`.
        ImportError: mir_eval is not installed.
    """
    transcription, velocity = _mir_eval()
    heard, played = note_rows(estimated), note_rows(reference)
    scores: dict[str, float] = {}
    for name, ratio in (("onset", None), ("offset", 0.2)):
        for suffix, judge in (("", transcription), ("velocity", velocity)):
            label = {"onset": "velocity", "offset": "offset_velocity"}[name] if suffix else name
            found = (float(len(heard) == len(played)),) * 3  # of nothing in one of them
            if len(heard) and len(played):
                sides = [_columns(rows, bool(suffix)) for rows in (played, heard)]
                found = judge.precision_recall_f1_overlap(
                    *sides[0], *sides[1], onset_tolerance=onset_tolerance_in_s, offset_ratio=ratio
                )
            scores |= {
                f"{label}_{part}": float(value)
                for part, value in zip(("precision", "recall", "f1"), found[:3], strict=True)
            }
    return scores


def _columns(rows: np.ndarray, with_velocity: bool) -> tuple[np.ndarray, ...]:
    hertz = 440.0 * 2.0 ** ((rows[:, 2] - 69) / 12)
    return (rows[:, :2], hertz, rows[:, 3]) if with_velocity else (rows[:, :2], hertz)


def _mir_eval():
    try:
        import mir_eval.transcription
        import mir_eval.transcription_velocity
    except ImportError as error:
        raise ImportError("Scores of transcriptions need mir_eval: pip install melreformer_hf[eval]") from error
    return mir_eval.transcription, mir_eval.transcription_velocity


def mean_scores(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means over pieces.

    Raises:
        ValueError: there are none.
    """
    if not scores:
        raise ValueError("scores must be of at least one piece, got none.")
    return {name: sum(one[name] for one in scores) / len(scores) for name in scores[0]}


__all__ = ["ONSET_TOLERANCE_IN_S", "mean_scores", "note_rows", "transcription_scores"]
