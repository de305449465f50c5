"""Composing: a `NoteTransformerModel` writes notes from nothing, after given ones, between them, or to a melody.

`compose_notes` draws one note at a time at constant memory, for any length; `compose`, `continue_notes`, `fill_notes` and
`accompany_notes` return whole scores. What the model sees is what it was trained on: the positions of
`processing.midi.sequences.note_sequence`.
"""

from __future__ import annotations

import math
import numbers
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from melreformer_hf._threads import using_threads
from melreformer_hf.models.note_transformer.modeling_note_transformer import NoteTransformerModel
from melreformer_hf.models.note_transformer.sampling_note_transformer import NoteSampler, SamplingOptions
from melreformer_hf.processing.midi.attributes import (
    DURATION_TICKS,
    END,
    TIME_TICKS,
    VOCAB_SIZES,
    attributes_of_notes,
    notes_of_attributes,
    pedal_intervals,
)
from melreformer_hf.processing.midi.notes import (
    DRUMS,
    NUM_PITCHES,
    TICKS_PER_SECOND,
    UNKNOWN_DURATION_TICKS,
    MidiNote,
    MidiSource,
    check_notes,
    read_notes,
    seconds_to_ticks,
)
from melreformer_hf.processing.midi.pedal import merge_intervals, read_pedal
from melreformer_hf.processing.midi.sequences import (
    CONTROL,
    EVENT,
    MIDDLE,
    START,
    GivenNotes,
    given_row,
)

LONGEST_SECONDS = 600.0  # of a piece that the model is left to end by itself
_FINAL_SHARE = 0.1  # of a length that was asked for: only there the model may end before it
_EARLY_END_TICKS = 5 * TICKS_PER_SECOND  # before a melody's last onset, from which on its accompaniment may end
_FEW_POSITIONS = 16  # read by one thread as fast as by several


class Score(NamedTuple):
    """Notes, and when the sustain pedal is down.

    Args:
        notes: in the order of (onset, pitch).
        pedal: intervals (down, up) in ticks of 10 ms.
    """

    notes: Sequence[MidiNote]
    pedal: Sequence[tuple[int, int]] = ()

    @classmethod
    def read(cls, source: MidiSource) -> Score:
        """Of a MIDI file: a path, bytes or a binary file.

        Raises:
            ValueError: the file is damaged, of type 2, or counts in SMPTE frames.
            FileNotFoundError: the path does not exist.
            ImportError: mido is not installed.
        """
        if hasattr(source, "read"):
            source = source.read()  # it is read twice
        return cls(read_notes(source), read_pedal(source))

    def in_seconds(self) -> tuple[list[tuple[float, float, int, int]], list[tuple[float, float]]]:
        """What is drawn and shown of it: (onset, length, pitch, velocity) of the notes, (down, up) of the pedal."""
        rows = []
        for note in self.notes:
            duration = UNKNOWN_DURATION_TICKS if note.duration is None else note.duration
            rows.append((note.onset / TICKS_PER_SECOND, duration / TICKS_PER_SECOND, note.pitch, note.velocity))
        return rows, [(down / TICKS_PER_SECOND, up / TICKS_PER_SECOND) for down, up in self.pedal]


class DrawnNote(NamedTuple):
    """A note as it is drawn: `onset` in ticks of 10 ms, `row` (5,) of `processing.midi.attributes`.

    The row's duration is how long the key is held unless it is struck again before; see `held_notes`.
    """

    onset: int
    row: np.ndarray


def held_notes(drawn: Iterable[tuple[int, np.ndarray]], instrument: int = 0) -> Iterator[MidiNote]:
    """Notes of what was drawn, each as soon as its end is known: a key that is struck again was let go before.

    Args:
        drawn: onsets and rows, as `compose_notes` yields them.
        instrument: of all notes.

    Yields:
        notes in the order of their onsets. At most those of the last 20 s wait, however long the piece.
    """
    waiting: deque[MidiNote] = deque()
    for onset, row in drawn:
        alone = np.array([0, *row[1:]])
        (note,) = notes_of_attributes(alone[None], int(onset), instrument)
        for index, other in enumerate(waiting):
            if other.pitch == note.pitch and other.onset + other.duration > note.onset:
                waiting[index] = other._replace(duration=note.onset - other.onset)
        while waiting and waiting[0].onset + waiting[0].duration <= note.onset:
            yield waiting.popleft()
        waiting.append(note)
    yield from waiting


def watched(drawn: Iterable[DrawnNote], callback: Callable[[DrawnNote], None] | None) -> Iterator[DrawnNote]:
    """Notes as they are drawn, each told to `callback` first; what that raises ends the piece."""
    for note in drawn:
        if callback is not None:
            callback(note)
        yield note


def drawn_score(drawn: Iterable[DrawnNote], prompt: Score | None = None) -> Score:
    """What `compose_notes` has yielded so far, as a piece; after the `prompt` that it was given."""
    prompt = prompt or Score([])
    return _merged(prompt.notes, prompt.pedal, drawn, 0, replaced=True)


class _Fixed:
    """Notes that stay as they are: in the order in which the model sees them, and the keys that they hold.

    Args:
        score: any notes; drums are left out, and of notes with equal onset and pitch all but the first.
    """

    def __init__(self, score: Score) -> None:
        found: dict[tuple[int, int], MidiNote] = {}
        for note in sorted(check_notes(score.notes), key=lambda note: (note.onset, note.pitch)):
            if note.instrument != DRUMS:
                found.setdefault((note.onset, note.pitch), note)
        self.notes = list(found.values())
        self.rows = attributes_of_notes(self.notes, score.pedal)
        self.onsets = np.array([note.onset for note in self.notes], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.notes)


class _HeldKeys:
    """When keys are held by notes that stay as they are, from a tick on."""

    def __init__(self, notes: Iterable[MidiNote], begin: int) -> None:
        keys: dict[int, list[tuple[int, int]]] = {}
        for note in notes:
            duration = UNKNOWN_DURATION_TICKS if note.duration is None else note.duration
            end = note.onset + max(duration, 1)
            if end > begin:
                keys.setdefault(note.pitch, []).append((note.onset, end))
        self.keys = {}
        for pitch, spans in keys.items():
            onsets, ends = np.array(sorted(spans)).T
            self.keys[pitch] = onsets, np.maximum.accumulate(ends)
        self.last = max((int(ends[-1]) for _, ends in self.keys.values()), default=begin)

    def free(self, ticks: np.ndarray) -> np.ndarray:
        """(tick, pitch) bool, which keys are up at each of `ticks`."""
        up = np.ones((len(ticks), NUM_PITCHES), dtype=bool)
        for pitch, (onsets, ends) in self.keys.items():
            place = np.searchsorted(onsets, ticks, side="right") - 1
            up[:, pitch] = (place < 0) | (ends[place] <= ticks)
        return up

    def room(self, pitch: int, tick: int) -> float:
        """Ticks until the key is struck next."""
        if pitch not in self.keys:
            return math.inf
        onsets = self.keys[pitch][0]
        place = np.searchsorted(onsets, tick, side="right")
        return int(onsets[place]) - tick if place < len(onsets) else math.inf


def compose_notes(
    model: NoteTransformerModel,
    *,
    seconds: float | None = None,
    prompt: Score | None = None,
    given: Score | None = None,
    span: tuple[int, int] | None = None,
    earliest_end: float | None = None,
    options: SamplingOptions | None = None,
    generator: torch.Generator | None = None,
    module: nn.Module | None = None,
) -> Iterator[DrawnNote]:
    """New notes one after another, as they are drawn; memory does not grow with their number.

    Args:
        model: in evaluation mode.
        seconds: where the piece ends at the latest, counted from tick 0 like everything here; its last notes are cut to
            end there. Without it the model ends the piece, at most `LONGEST_SECONDS` after its beginning.
        prompt: notes that were played before.
        given: notes that will be played, which the model is told of ahead; they are not yielded.
        span: ticks (first, end) between which new notes begin; by default from the prompt's last onset on, else from
            the given notes' first, else from 0.
        earliest_end: seconds before which the model may not end the piece; by default nine tenths of `seconds`, else 0.
        options: how notes are drawn.
        generator: its state decides the notes.
        module: what is called in the model's place, such as a wrapper of it.

    Yields:
        (onset, row). No note strikes a key that a prompt's or given note holds, or is still held when one strikes it.

    Raises:
        ValueError: a number is out of range, the prompt begins after the span, or the model has another vocabulary.
    """
    if tuple(model.config.vocab_sizes) != VOCAB_SIZES:
        raise ValueError(f"model.config.vocab_sizes must be {VOCAB_SIZES}, got {tuple(model.config.vocab_sizes)}.")
    prompt, given = _Fixed(prompt or Score([])), _Fixed(given or Score([]))
    first = prompt.onsets[-1] if len(prompt) else given.onsets[0] if len(given) else 0
    begin, stop = (int(first), None) if span is None else span
    if begin < 0 or (stop is not None and stop <= begin):
        raise ValueError(f"span must be ticks (first, end) with 0 <= first < end, got {span}.")
    if len(prompt) and prompt.onsets[-1] > begin:
        raise ValueError(f"prompt must begin before the span ({begin} ticks), got a note at {prompt.onsets[-1]}.")
    if seconds is not None and not (_is_number(seconds) and seconds * TICKS_PER_SECOND >= begin + 1):
        raise ValueError(
            f"seconds must be a number beyond {begin / TICKS_PER_SECOND:g} s, where new notes begin, got {seconds!r}."
        )
    longest = (begin if stop is None else stop) + seconds_to_ticks(LONGEST_SECONDS)
    end = longest if seconds is None else math.floor(seconds * TICKS_PER_SECOND)
    if earliest_end is None:
        earliest_end = 0.0 if seconds is None else (1 - _FINAL_SHARE) * seconds
    sampler = NoteSampler(model, 1, options, generator, module)
    writer = _Writer(sampler, prompt, given, begin, end, end if stop is None else min(stop, end))
    return writer.notes(seconds_to_ticks(earliest_end))


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


class _Writer:
    """The loop of `compose_notes`; times are ticks, those of the model from its sequence's beginning."""

    def __init__(
        self, sampler: NoteSampler, prompt: _Fixed, given: _Fixed, begin: int, end: int, last_onset: int
    ) -> None:
        self.sampler, self.prompt, self.given = sampler, prompt, given
        self.begin, self.end, self.last_onset = begin, end, last_onset
        config, options = sampler.model.config, sampler.options
        # What lies farther back is out of every layer's sight, and of the repetition control's.
        reach = max(config.num_hidden_layers * config.window, options.repeat_memory)
        self.skipped = max(len(prompt) - reach, 0)
        self.origin = int(prompt.onsets[self.skipped]) if len(prompt) else begin
        self.sight = GivenNotes(given.onsets - self.origin, given.rows[:, 1])
        self.held = _HeldKeys([*prompt.notes, *given.notes], begin)
        self.now = self.sounded = 0  # when the last played note began: for the model, and in truth
        self.positions: list[tuple[int, np.ndarray, int, int]] = []  # role, attributes, onset, `now`

    def notes(self, earliest_end: int) -> Iterator[DrawnNote]:
        """See `compose_notes`."""
        self._add(MIDDLE if self.skipped else START, np.zeros(len(VOCAB_SIZES), dtype=np.int64))
        self._play_prompt()
        while True:
            few = len(self.positions) <= _FEW_POSITIONS
            self._feed()
            may_end = self.origin + self.now >= earliest_end
            # One note is hundreds of products of a row and a matrix: a second thread only waits and wakes.
            with using_threads(1 if few else torch.get_num_threads()):
                row = self.sampler.next_notes(may_end, self._allowed())[0].numpy()
            if row[0] == END:
                return
            self.now = self.sounded = int(self._onsets()[row[0]])
            onset = self.origin + self.now
            if onset >= self.last_onset:
                return
            room = min(self.end - onset, self.held.room(int(row[1]), onset))
            # The first duration is that of no key: a note has a tick at least.
            row[2] = max(min(row[2], np.searchsorted(DURATION_TICKS, room, side="right") - 1), 1)
            yield DrawnNote(onset, row)
            self._add(EVENT, row)

    def _play_prompt(self) -> None:
        # As `note_sequence` does it, whose clock runs on rounded times.
        onsets = self.prompt.onsets - self.origin
        for index in range(self.skipped, len(self.prompt)):
            row = given_row(self.prompt.rows[index], onsets[index], self.now)
            longest = row[0] == len(TIME_TICKS) - 1
            self.now = int(onsets[index] if longest else self.now + TIME_TICKS[row[0]])
            self._add(EVENT, row)
            self.sounded = int(onsets[index])

    def _add(self, role: int, row: np.ndarray) -> None:
        """A mark or a played note, and before it the given notes that come into sight with it."""
        for index in self.sight.due(self.now):
            onset = int(self.sight.onsets[index])
            given = given_row(self.given.rows[index], onset, self.now)
            self.positions.append((CONTROL, given, onset, self.now))
        self.positions.append((role, row, self.now, self.now))

    def _feed(self) -> None:
        roles, rows, ticks, moments = zip(*self.positions, strict=True)
        self.positions.clear()
        roles = torch.tensor([roles])
        seconds = torch.tensor([ticks], dtype=torch.float64) / TICKS_PER_SECOND
        rows = torch.from_numpy(np.stack(rows))[None]
        upcoming = torch.from_numpy(self.sight.upcoming(np.array(moments)))[None] if len(self.given) else None
        self.sampler.feed(roles, rows, seconds.float(), roles == EVENT, upcoming)

    def _onsets(self) -> np.ndarray:
        """(time,) where each time leads to; the longest one leads over any silence, as in training."""
        onsets = self.now + TIME_TICKS
        onsets[-1] = max(onsets[-1], self.begin - self.origin)
        return onsets

    def _allowed(self) -> torch.Tensor | None:
        """(1, time, pitch): nothing before the span, nothing on a key that is held, no order but that of the pitches."""
        if self.origin + self.now >= max(self.begin, self.held.last) and self.now == self.sounded:
            return None
        onsets = self._onsets()
        allowed = self.held.free(self.origin + onsets)
        allowed[onsets < max(self.begin - self.origin, self.sounded)] = False
        allowed[onsets == self.sounded, : self.sampler.last_pitch[0] + 1] = False
        return torch.from_numpy(allowed)[None]


def compose(
    model: NoteTransformerModel,
    seconds: float | None = None,
    *,
    options: SamplingOptions | None = None,
    generator: torch.Generator | None = None,
    module: nn.Module | None = None,
    instrument: int = 0,
) -> Score:
    """A piece from nothing; arguments as of `compose_notes`.

    Raises:
        ValueError: as there.
    """
    drawn = compose_notes(model, seconds=seconds, options=options, generator=generator, module=module)
    return _merged([], [], drawn, instrument)


def continue_notes(
    model: NoteTransformerModel,
    prompt: Score,
    seconds: float | None = None,
    *,
    options: SamplingOptions | None = None,
    generator: torch.Generator | None = None,
    module: nn.Module | None = None,
    instrument: int = 0,
    callback_on_note: Callable[[DrawnNote], None] | None = None,
) -> Score:
    """A piece that begins with given notes; new ones begin with the last of them at the earliest.

    Args:
        model: in evaluation mode.
        prompt: the beginning; it stays exactly as it is.
        seconds: length of the whole piece; without it, see `compose_notes`.
        options: how notes are drawn.
        generator: its state decides the notes.
        module: what is called in the model's place.
        instrument: of the new notes.
        callback_on_note: told every new note when it is drawn.

    Raises:
        ValueError: the prompt has no notes, or none before `seconds`.
    """
    _check_any("prompt", prompt, "To compose from nothing, use compose.")
    drawn = compose_notes(model, seconds=seconds, prompt=prompt, options=options, generator=generator, module=module)
    drawn = watched(drawn, callback_on_note)
    return _merged(prompt.notes, prompt.pedal, drawn, instrument, replaced=True)


def fill_notes(
    model: NoteTransformerModel,
    score: Score,
    begin: float,
    end: float,
    *,
    options: SamplingOptions | None = None,
    generator: torch.Generator | None = None,
    module: nn.Module | None = None,
    instrument: int = 0,
    callback_on_note: Callable[[DrawnNote], None] | None = None,
) -> Score:
    """A piece with new notes in a gap between two parts, which stay exactly as they are.

    Args:
        model: in evaluation mode.
        score: both parts; notes that begin within the gap are replaced.
        begin: of the gap in seconds: new notes begin here at the earliest.
        end: of the gap in seconds: new notes begin before it.
        options: how notes are drawn.
        generator: its state decides the notes.
        module: what is called in the model's place.
        instrument: of the new notes.
        callback_on_note: told every new note when it is drawn.

    Raises:
        ValueError: `begin` and `end` are no gap, or there are no notes on either side of it.
    """
    numbered = _is_number(begin) and _is_number(end) and begin >= 0
    first, stop = (seconds_to_ticks(value) for value in ((begin, end) if numbered else (0.0, 0.0)))
    if stop <= first:
        raise ValueError(
            f"begin and end must be seconds with 0 <= begin < end, at least 10 ms apart, got {begin!r} and {end!r}."
        )
    before = [note for note in score.notes if note.onset < first]
    after = [note for note in score.notes if note.onset >= stop]
    _check_any("score", Score([*before, *after]), "There must be some before or after the gap.")
    drawn = compose_notes(
        model,
        prompt=Score(before, score.pedal),
        given=Score(after, score.pedal),
        span=(first, stop),
        earliest_end=0.0,
        options=options,
        generator=generator,
        module=module,
    )
    drawn = watched(drawn, callback_on_note)
    return _merged([*before, *after], _without(score.pedal, first, stop), drawn, instrument, until=stop)


def accompany_notes(
    model: NoteTransformerModel,
    melody: Score,
    seconds: float | None = None,
    *,
    options: SamplingOptions | None = None,
    generator: torch.Generator | None = None,
    module: nn.Module | None = None,
    instrument: int = 0,
    callback_on_note: Callable[[DrawnNote], None] | None = None,
) -> Score:
    """A given melody, which stays exactly as it is, with new notes to it.

    Args:
        model: in evaluation mode.
        melody: the given notes.
        seconds: where the piece ends; by default with the melody's last note.
        options: how notes are drawn.
        generator: its state decides the notes.
        module: what is called in the model's place.
        instrument: of the new notes.
        callback_on_note: told every new note when it is drawn.

    Raises:
        ValueError: the melody has no notes, or `seconds` lies before it.
    """
    _check_any("melody", melody, "Give the notes that are to be accompanied.")
    known = [note for note in melody.notes if note.instrument != DRUMS]
    lengths = [UNKNOWN_DURATION_TICKS if note.duration is None else note.duration for note in known]
    last = max(note.onset + max(length, 1) for note, length in zip(known, lengths, strict=True))
    drawn = compose_notes(
        model,
        seconds=last / TICKS_PER_SECOND if seconds is None else seconds,
        given=melody,
        earliest_end=max(max(note.onset for note in known) - _EARLY_END_TICKS, 0) / TICKS_PER_SECOND,
        options=options,
        generator=generator,
        module=module,
    )
    drawn = watched(drawn, callback_on_note)
    return _merged(melody.notes, melody.pedal, drawn, instrument)


def _check_any(name: str, score: Score, advice: str) -> None:
    if not any(note.instrument != DRUMS for note in score.notes):
        what = "only drums" if len(score.notes) else "none"
        raise ValueError(f"{name} must have notes that are no drums, got {what}. {advice}")


def _without(pedal: Iterable[tuple[int, int]], begin: int, end: float) -> list[tuple[int, int]]:
    """Intervals outside [begin, end)."""
    parts = [part for down, up in pedal for part in ((down, min(up, begin)), (max(down, end), up))]
    return merge_intervals((int(down), int(up)) for down, up in parts if down < up)


def _merged(
    notes: Sequence[MidiNote],
    pedal: Sequence[tuple[int, int]],
    drawn: Iterable[DrawnNote],
    instrument: int,
    replaced: bool = False,
    until: int | None = None,
) -> Score:
    """Given and new notes; where `replaced`, the given pedal counts until the first new note only."""
    drawn = list(drawn)
    onsets = [note.onset for note in drawn]
    new = pedal_intervals(onsets, [int(note.row[-1]) for note in drawn])
    if until is not None:
        new = [(down, min(up, until)) for down, up in new]
    if replaced and drawn:
        pedal = _without(pedal, onsets[0], math.inf)
    both = sorted([*notes, *held_notes(drawn, instrument)], key=lambda note: (note.onset, note.pitch))
    return Score(both, merge_intervals([*pedal, *new]))


def sampling(temperature: float | Sequence[float] | None, top_p: float | None) -> SamplingOptions:
    """How notes are drawn, where `None` leaves the default.

    Raises:
        ValueError: an argument breaks its rule.
    """
    given = {"temperature": temperature, "top_p": top_p}
    return SamplingOptions(**{name: value for name, value in given.items() if value is not None})


__all__ = [
    "LONGEST_SECONDS",
    "DrawnNote",
    "Score",
    "accompany_notes",
    "compose",
    "compose_notes",
    "continue_notes",
    "drawn_score",
    "fill_notes",
    "held_notes",
    "sampling",
    "watched",
]
