"""Drawing notes one after another: valid by construction, at constant memory, repeatable."""

from __future__ import annotations

import functools
import math
from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from melreformer_hf.models.note_transformer.blocks_note_transformer import NoteCache, NoteHead
from melreformer_hf.models.note_transformer.modeling_note_transformer import NoteTransformerModel
from melreformer_hf.nn.sampling import Generators, choose

_TIME, _PITCH, _PEDAL = 0, 1, -1
_IMPOSSIBLE = float("-inf")
_CHUNK = 256  # positions of a long prompt that go through the model at once


@dataclass(frozen=True)
class SamplingOptions:
    """How notes are drawn.

    Args:
        temperature: divides logits; one number, or one per attribute.
        top_p: draw among the likeliest values that together reach this probability.
        repeat_length: so many notes in a row (steps in time and pitches) are a phrase.
        max_repeats: how often a phrase may come again within `repeat_memory` notes; `None` for any number.
        repeat_memory: notes that are looked back at.
        allow_quotes: whether phrases of the pieces that the model was trained on may be written, where it remembers them.

    Raises:
        ValueError: a field breaks its rule.
    """

    temperature: float | Sequence[float] = 1.0
    top_p: float = 0.98
    repeat_length: int = 8
    max_repeats: int | None = 3
    repeat_memory: int = 1024
    allow_quotes: bool = False

    def __post_init__(self) -> None:
        temperatures = [self.temperature] if isinstance(self.temperature, (int, float)) else list(self.temperature)
        if not temperatures or not all(math.isfinite(value) and value > 0 for value in temperatures):
            raise ValueError(f"temperature must be positive, got {self.temperature}.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}.")
        if self.repeat_length < 2 or self.repeat_memory < self.repeat_length:
            raise ValueError(
                f"2 <= repeat_length <= repeat_memory must hold, got {self.repeat_length} and {self.repeat_memory}."
            )
        if self.max_repeats is not None and self.max_repeats < 0:
            raise ValueError(f"max_repeats must be at least 0, or None, got {self.max_repeats}.")

    def temperature_of(self, attribute: int, num_attributes: int) -> float:
        """The temperature of one attribute."""
        if isinstance(self.temperature, (int, float)):
            return float(self.temperature)
        if len(self.temperature) != num_attributes:
            raise ValueError(
                f"temperature must be one number or one per attribute ({num_attributes}), got {self.temperature}."
            )
        return float(self.temperature[attribute])


class PhraseMemory:
    """Counts phrases of (time, pitch) pairs and tells which pitches would repeat one too often."""

    def __init__(self, options: SamplingOptions) -> None:
        self.length, self.most = options.repeat_length, options.max_repeats
        self.notes: deque[tuple[int, int]] = deque(maxlen=options.repeat_memory)
        # How often each note followed the rest of a phrase: found at once, however much is remembered.
        self.counts: defaultdict[tuple[tuple[int, int], ...], Counter[tuple[int, int]]] = defaultdict(Counter)

    def add(self, time: int, pitch: int) -> None:
        """Remember a note; the oldest is forgotten."""
        if len(self.notes) == self.notes.maxlen:
            # The phrase that begins with the note that is about to be forgotten.
            *beginning, last = (self.notes[index] for index in range(self.length))
            ends = self.counts[tuple(beginning)]
            ends[last] -= 1
            if not ends[last]:
                del ends[last]
            if not ends:
                del self.counts[tuple(beginning)]
        self.notes.append((time, pitch))
        if len(self.notes) >= self.length:
            *beginning, last = (self.notes[index] for index in range(-self.length, 0))
            self.counts[tuple(beginning)][last] += 1

    def barred(self, time: int) -> list[int]:
        """Pitches that, `time` after the last note, would repeat a phrase more often than allowed."""
        if self.most is None or len(self.notes) < self.length - 1:
            return []
        beginning = tuple(self.notes[index] for index in range(1 - self.length, 0))
        ends = self.counts.get(beginning, {})
        return [pitch for (then, pitch), count in ends.items() if then == time and count > self.most]


class NoteSampler:
    """Writes notes with a model, row by row of a batch in step.

    Grammar: notes of one onset come in the order of their pitches, each pitch once, and agree about the pedal (the last
    attribute), so that every sample is a score.

    Args:
        model: a `NoteTransformerModel`, in evaluation mode.
        batch_size: rows.
        options: how values are drawn.
        generator: one, or one per row.
        module: what is called in the model's place, such as a wrapper of it.

    Raises:
        ValueError: generators are not one per row.
    """

    def __init__(
        self,
        model: NoteTransformerModel,
        batch_size: int = 1,
        options: SamplingOptions | None = None,
        generator: Generators = None,
        module: nn.Module | None = None,
    ) -> None:
        if isinstance(generator, Sequence) and len(generator) != batch_size:
            raise ValueError(f"generator must be one, or one per row ({batch_size}), got {len(generator)}.")
        self.model, self.options, self.generator = model, options or SamplingOptions(), generator
        self.module = model if module is None else module
        self.vocab_sizes, self.end_id = tuple(model.config.vocab_sizes), model.config.end_id
        self.temperatures = [
            self.options.temperature_of(index, len(self.vocab_sizes)) for index in range(len(self.vocab_sizes))
        ]
        self.cache = NoteCache(model.config)
        self.phrases = [PhraseMemory(self.options) for _ in range(batch_size)]
        self.last_pitch = [-1] * batch_size
        self.last_pedal = [-1] * batch_size
        self._waiting: list[tuple[torch.Tensor, ...]] = []

    def feed(
        self,
        roles: torch.Tensor,
        attributes: torch.Tensor,
        seconds: torch.Tensor,
        played: torch.Tensor,
        upcoming: torch.Tensor | None = None,
    ) -> None:
        """Let the model see positions, when the next notes are drawn.

        Args:
            roles: (batch, position).
            attributes: (batch, position, attribute).
            seconds: (batch, position).
            played: (batch, position) bool, which of them are notes that were played (rather than given).
            upcoming: (batch, position, 2 * num_upcoming), see the model; always or never.
        """
        self._waiting.append(
            (roles, attributes, seconds) if upcoming is None else (roles, attributes, seconds, upcoming)
        )
        for row, (values, flags) in enumerate(zip(attributes.tolist(), played.tolist(), strict=True)):
            for note, flag in zip(values, flags, strict=True):
                if flag:
                    self.phrases[row].add(note[_TIME], note[_PITCH])
                    self.last_pitch[row], self.last_pedal[row] = note[_PITCH], note[_PEDAL]

    @torch.no_grad()
    def next_notes(self, may_end: bool | Sequence[bool] = True, allowed: torch.Tensor | None = None) -> torch.Tensor:
        """Draw the next note of every row: (batch, attribute) on the CPU. A time of `end_id` ends a row's piece.

        Args:
            may_end: whether pieces may end here; one, or one per row.
            allowed: (batch, time, pitch) bool, which pitches may be struck after which time; a time that leaves none is not
                drawn, and where none does the piece ends. Without it all may.

        Raises:
            ValueError: nothing was fed since the last notes were drawn.
        """
        if not self._waiting:
            raise ValueError("feed must come before next_notes: the notes drawn last, or a piece's first position.")
        device = self.model.device
        joined = [
            parts[0] if len(parts) == 1 else torch.cat(parts, dim=1) for parts in zip(*self._waiting, strict=True)
        ]
        self._waiting.clear()
        *before, last = zip(*(values.to(device).split(_CHUNK, dim=1) for values in joined), strict=True)
        for part in before:
            self.module(*part, cache=self.cache)
        draw = functools.partial(self._draw, may_end=may_end, allowed=allowed)
        return self.module(*last, cache=self.cache, draw=draw).next_notes

    def _draw(
        self,
        head: NoteHead,
        context: torch.Tensor,
        may_end: bool | Sequence[bool],
        allowed: torch.Tensor | None,
    ) -> torch.Tensor:
        chosen: list[torch.Tensor] = []
        times: list[int] = []  # the first that is chosen, which says what else may be
        for attribute, part in enumerate(head.heads):
            logits = part(context).float()
            self._follow_grammar(logits, attribute, times, may_end)
            if allowed is not None and attribute <= _PITCH:
                self._keep_allowed(logits, times, allowed)
            if attribute == _PITCH:
                self._vary(logits, times)
            values = choose(logits, True, self.temperatures[attribute], None, self.options.top_p, self.generator)
            chosen.append(values.cpu())
            times = times or chosen[_TIME].tolist()
            # As in training: each head sees the rows of the values before it (`NoteHead.forward`).
            if attribute < len(head.chosen):
                context = context + head.chosen[attribute](values)
        return torch.stack(chosen, dim=1)

    def _follow_grammar(
        self, logits: torch.Tensor, attribute: int, times: list[int], may_end: bool | Sequence[bool]
    ) -> None:
        # Values are barred one by one, where there are some: a mask of all of them costs more than the choice.
        if attribute == _TIME:
            highest = self.vocab_sizes[_PITCH] - 1
            for row, pitch in enumerate(self.last_pitch):
                if not (may_end[row] if isinstance(may_end, Sequence) else may_end):
                    logits[row, self.end_id] = _IMPOSSIBLE
                if pitch >= highest:
                    logits[row, 0] = _IMPOSSIBLE  # nothing can follow it within the same onset
            return
        for row, time in enumerate(times):
            if time:
                continue
            if attribute == _PITCH:  # the same onset: pitches rise, so that none is struck twice
                logits[row, : self.last_pitch[row] + 1] = _IMPOSSIBLE
            elif attribute == len(self.vocab_sizes) + _PEDAL and self.last_pedal[row] >= 0:
                logits[row, : self.last_pedal[row]] = _IMPOSSIBLE
                logits[row, self.last_pedal[row] + 1 :] = _IMPOSSIBLE

    def _vary(self, logits: torch.Tensor, times: list[int]) -> None:
        """Bar the pitches that would repeat a phrase too often, or quote one of the training's."""
        for row, time in enumerate(times):
            barred = sorted({*self.phrases[row].barred(time), *self._quoted(row, time)})
            # Better a repetition than nothing to choose from.
            if barred and logits[row].isfinite().sum() > len(barred):
                logits[row, barred] = _IMPOSSIBLE

    def _quoted(self, row: int, time: int) -> list[int]:
        """Pitches that, `time` after the last note, would complete a phrase that the model was trained on."""
        known, notes = self.model.phrases, self.phrases[row].notes
        if known is None or self.options.allow_quotes or time >= self.end_id or len(notes) < known.length:
            return []
        # (note, 2): times and pitches of the last notes; an event is the step to a note in pitch and in time.
        recent = np.array([notes[index] for index in range(-known.length, 0)])
        events = np.stack([np.diff(recent[:, 1]), recent[1:, 0]], axis=1)
        steps = np.arange(self.vocab_sizes[_PITCH]) - recent[-1, 1]
        return np.flatnonzero(known.completing(events, np.stack([steps, np.full_like(steps, time)], axis=1))).tolist()

    def _keep_allowed(self, logits: torch.Tensor, times: list[int], allowed: torch.Tensor) -> None:
        end = self.end_id
        for row, free in enumerate(allowed):
            if times:
                if times[row] < end:
                    logits[row].masked_fill_(~free[times[row]].to(logits.device), _IMPOSSIBLE)
                continue
            possible = free.any(-1)
            possible[0] = free[0, self.last_pitch[row] + 1 :].any()  # as the grammar will have it
            logits[row, :end].masked_fill_(~possible.to(logits.device), _IMPOSSIBLE)
            if not possible.any():
                logits[row, end] = 0.0


__all__ = ["NoteSampler", "PhraseMemory", "SamplingOptions"]
