"""N-gram models of notes, the baselines of `benchmarks/composer.py`.

Two kinds, each of order 2 and 5:

- *of attributes*: notes flattened to time, pitch, duration, velocity, pedal, time, ...; order n sees the n - 1 attributes
  before, as an n-gram model of any other language would.
- *of notes*: order n sees the n - 1 notes before, and of its own note all that is written already. No count could fill
  contexts of whole notes, so that each attribute has a chain of features of them, most telling first, chosen among some
  dozens by what they save on the validation split. Pitch is counted as a key and as a step
  from the last one, and the two are mixed; keys and rhythm are learned from transposed and faster or slower copies, too.

Smoothing is that of `melreformer_hf.metrics.ngrams`; its numbers were chosen on the validation split as well
(Kneser-Ney with a large discount).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from melreformer_hf.metrics.ngrams import Ngram, nested_contexts
from melreformer_hf.processing.midi.attributes import ATTRIBUTES, VOCAB_SIZES

SYMBOLS = (*ATTRIBUTES, "step")
_STEPS = 2 * 127 + 1
SIZES = {**dict(zip(ATTRIBUTES, VOCAB_SIZES, strict=True)), "step": _STEPS}
_FAR_PAST = -1000  # the value of a feature of a note before the piece

SMOOTHING = {"discount": 0.9, "strength": 1.0, "continuations": True}

# Chains by order and symbol; "time-2" is the time of the note before the last one.
CHAINS: dict[int, dict[str, tuple[str, ...]]] = {
    2: {
        "time": ("duration-1", "time-1"),
        "pitch": ("pitch-1", "gap"),
        "step": ("gap", "class-1", "pitch-1", "gap-1"),
        "duration": ("duration-1", "time"),
        "velocity": ("velocity-1", "step"),
        "pedal": ("pedal-1", "gap", "velocity"),
    },
    5: {
        "time": ("duration-1", "time-1", "time-2", "time-3", "time-4"),
        "pitch": ("gap", "pitch-1", "class-2", "pitch-2", "pitch-3", "pitch-4"),
        "step": ("gap", "class-1", "step-1", "step-2", "step-3"),
        "duration": ("duration-1", "gap", "duration-2", "duration-3"),
        "velocity": ("velocity-1", "gap", "velocity-2", "velocity-3", "velocity-4"),
        "pedal": ("pedal-1", "pedal-4", "gap", "velocity"),
    },
}


def features(pieces: Sequence[np.ndarray], reach: int) -> dict[str, np.ndarray]:
    """Features of all notes of `pieces` ((note, 5) each), with those of up to `reach` notes before: (note,) each.

    `gap` is the time in four classes (same onset, same chord, within 0.4 s, later), `class` the pitch class, `step` the step in
    pitch from the note before.
    """
    columns: dict[str, list[np.ndarray]] = {}
    for rows in pieces:
        own = dict(zip(ATTRIBUTES, rows.T, strict=True))
        own["gap"] = np.searchsorted([1, 5, 40], rows[:, 0], side="right")
        own["class"] = rows[:, 1] % 12
        own["step"] = np.diff(rows[:, 1], prepend=rows[:1, 1]) + _STEPS // 2
        for name, values in own.items():
            columns.setdefault(name, []).append(values)
            for back in range(1, reach + 1):
                past = np.full(len(values), _FAR_PAST)
                past[back:] = values[: len(values) - back]
                columns.setdefault(f"{name}-{back}", []).append(past)
    return {name: np.concatenate(parts) for name, parts in columns.items()}


def candidates(symbol: str, order: int) -> list[str]:
    """Features that an n-gram of notes may look at when it writes `symbol`."""
    before = {"time": [], "pitch": ["time", "gap"], "step": ["time", "gap"]}
    before["duration"] = ["time", "gap", "pitch", "class", "step"]
    before["velocity"] = [*before["duration"], "duration"]
    before["pedal"] = [*before["velocity"], "velocity"]
    past = [*ATTRIBUTES, "gap", "class", "step"]
    # A step reaches one note farther back than its own.
    return before[symbol] + [
        f"{name}-{back}" for back in range(1, order) for name in past if name != "step" or back < order - 1
    ]


def probabilities(
    symbol: str,
    chain: Sequence[str],
    train: dict[str, np.ndarray],
    held_out: dict[str, np.ndarray],
    smoothing: dict | None = None,
) -> np.ndarray:
    """(note,) probability of each held-out note's symbol; `smoothing` is that of `Ngram`, by default `SMOOTHING`."""
    learned, asked = (
        nested_contexts([table[name] for name in chain], len(table["time"])) for table in (train, held_out)
    )
    model = Ngram(train[symbol], learned, SIZES[symbol], **(smoothing or SMOOTHING))
    return model.probabilities(held_out[symbol], asked)


def flat_chain(attribute: int, order: int) -> tuple[str, ...]:
    """The attributes before `attribute` in the flattened sequence, nearest first."""
    found = []
    for back in range(1, order):
        note, place = divmod(attribute - back, len(ATTRIBUTES))
        found.append(ATTRIBUTES[place] if note == 0 else f"{ATTRIBUTES[place]}{note}")
    return tuple(found)


def bits_of_flat(order: int, train: dict[str, np.ndarray], held_out: dict[str, np.ndarray]) -> np.ndarray:
    """(note, attribute) bits of the n-gram of attributes."""
    chains = [flat_chain(index, order) for index in range(len(ATTRIBUTES))]
    found = [probabilities(name, chain, train, held_out) for name, chain in zip(ATTRIBUTES, chains, strict=True)]
    return -np.log2(np.stack(found, axis=1))


def transposed(table: dict[str, np.ndarray], names: Sequence[str], shifts: Sequence[int]) -> dict[str, np.ndarray]:
    """The features `names` of all copies of the notes that are moved by `shifts` semitones."""
    parts: dict[str, list[np.ndarray]] = {name: [] for name in names}
    inside = {}
    for shift in shifts:
        moved = table["pitch"] + shift
        inside[shift] = (moved >= 0) & (moved < 128)
        for name in names:
            values, kind = table[name], name.split("-")[0]
            if kind == "pitch":
                values = np.where(values == _FAR_PAST, values, values + shift)
            elif kind == "class":
                values = np.where(values == _FAR_PAST, values, (values + shift) % 12)
            parts[name].append(values[inside[shift]])
    return {name: np.concatenate(values) for name, values in parts.items()}


def bits_of_notes(
    order: int,
    train: dict[str, np.ndarray],
    stretched: dict[str, np.ndarray],
    held_out: dict[str, np.ndarray],
    shifts: Sequence[int] = (-5, -2, 0, 2, 5),
    step_share: float = 0.3,
) -> np.ndarray:
    """(note, attribute) bits of the n-gram of notes.

    Args:
        order: n.
        train: features of the training notes.
        stretched: features of the training notes and of copies in other tempi.
        held_out: features of the notes that are predicted.
        shifts: semitones of the copies from which keys are learned.
        step_share: of the steps in the mixture that predicts pitch.
    """
    chains, found = CHAINS[order], {}
    for symbol in SYMBOLS:
        known = stretched if symbol in ("time", "duration") else train
        if symbol == "pitch":
            known = transposed(train, sorted({"time", "pitch", *chains[symbol]}), shifts)
        found[symbol] = probabilities(symbol, chains[symbol], known, held_out)
    found["pitch"] = step_share * found.pop("step") + (1 - step_share) * found["pitch"]
    return -np.log2(np.stack([found[name] for name in ATTRIBUTES], axis=1))


def uniform_bits() -> list[float]:
    """Of each attribute."""
    return [math.log2(size) for size in VOCAB_SIZES]
