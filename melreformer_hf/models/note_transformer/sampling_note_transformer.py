"""Drawing notes one after another: valid by construction, at constant memory, repeatable."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from melreformer_hf.models.note_transformer.blocks_note_transformer import NoteCache
from melreformer_hf.nn.sampling import Generators, choose

_TIME, _PITCH = 0, 1


@dataclass(frozen=True)
class SamplingOptions:
    """How notes are drawn.

    Args:
        temperature: divides logits; one number, or one per attribute.
        top_p: draw among the likeliest values that together reach this probability.
        repeat_length: so many notes in a row (steps in time and pitches) are a phrase.
        max_repeats: how often a phrase may come again within `repeat_memory` notes; `None` for any number.
        repeat_memory: notes that are looked back at.

    Raises:
        ValueError: a field breaks its rule.
    """

    temperature: float | Sequence[float] = 1.0
    top_p: float = 0.98
    repeat_length: int = 8
    max_repeats: int | None = 3
    repeat_memory: int = 1024

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
        self.counts: Counter[tuple[tuple[int, int], ...]] = Counter()

    def add(self, time: int, pitch: int) -> None:
        """Remember a note; the oldest is forgotten."""
        if len(self.notes) == self.notes.maxlen:
            # The phrase that begins with the note that is about to be forgotten.
            oldest = tuple(self.notes[index] for index in range(self.length))
            self.counts[oldest] -= 1
            if not self.counts[oldest]:
                del self.counts[oldest]
        self.notes.append((time, pitch))
        if len(self.notes) >= self.length:
            self.counts[tuple(self.notes[index] for index in range(-self.length, 0))] += 1

    def barred(self, time: int) -> list[int]:
        """Pitches that, `time` after the last note, would repeat a phrase more often than allowed."""
        if self.most is None or len(self.notes) < self.length - 1:
            return []
        beginning = tuple(self.notes[index] for index in range(1 - self.length, 0))
        return [
            pitch
            for *first, (then, pitch) in self.counts
            if then == time and tuple(first) == beginning and self.counts[(*first, (then, pitch))] > self.most
        ]


class NoteSampler:
    """Writes notes with a model, row by row of a batch in step.

    Grammar: notes of one onset come in the order of their pitches, each pitch once, so that every sample is a score.

    Args:
        model: a `NoteTransformerModel`, in evaluation mode.
        batch_size: rows.
        options: how values are drawn.
        generator: one, or one per row.

    Raises:
        ValueError: generators are not one per row.
    """

    def __init__(
        self, model, batch_size: int = 1, options: SamplingOptions | None = None, generator: Generators = None
    ) -> None:
        if isinstance(generator, Sequence) and len(generator) != batch_size:
            raise ValueError(f"generator must be one, or one per row ({batch_size}), got {len(generator)}.")
        self.model, self.options, self.generator = model, options or SamplingOptions(), generator
        self.cache, self.context = NoteCache(), None
        self.phrases = [PhraseMemory(self.options) for _ in range(batch_size)]
        self.last_pitch = torch.full((batch_size,), -1)

    @torch.no_grad()
    def feed(self, roles: torch.Tensor, attributes: torch.Tensor, seconds: torch.Tensor, played: torch.Tensor) -> None:
        """Let the model see positions.

        Args:
            roles: (batch, position).
            attributes: (batch, position, attribute).
            seconds: (batch, position).
            played: (batch, position) bool, which of them are notes that were played (rather than given).
        """
        device = self.model.device
        output = self.model(roles.to(device), attributes.to(device), seconds.to(device), cache=self.cache)
        self.context = output.last_hidden_state[:, -1]
        for row, (values, flags) in enumerate(zip(attributes.tolist(), played.tolist(), strict=True)):
            for note, flag in zip(values, flags, strict=True):
                if flag:
                    self.phrases[row].add(note[_TIME], note[_PITCH])
                    self.last_pitch[row] = note[_PITCH]

    @torch.no_grad()
    def next_notes(self, may_end: bool = True, latest_time: int | None = None) -> torch.Tensor:
        """Draw the next note of every row: (batch, attribute) on the CPU. A time of `end_id` ends a row's piece.

        Args:
            may_end: whether pieces may end here.
            latest_time: longest time that may be drawn.
        """
        head, sizes = self.model.head, self.model.config.vocab_sizes
        context, chosen = self.context, []
        for attribute, size in enumerate(sizes):
            logits = head.heads[attribute](context).float()
            self._restrict(logits, attribute, chosen, may_end, latest_time)
            temperature = self.options.temperature_of(attribute, len(sizes))
            values = choose(logits, True, temperature, None, self.options.top_p, self.generator).cpu()
            chosen.append(values)
            # As in training: each head sees the rows of the values before it (`NoteHead.forward`).
            if attribute + 1 < len(sizes):
                context = context + head.chosen[attribute](values.to(context.device).clamp(max=size - 1))
        return torch.stack(chosen, dim=1)

    def _restrict(
        self,
        logits: torch.Tensor,
        attribute: int,
        chosen: list[torch.Tensor],
        may_end: bool,
        latest_time: int | None,
    ) -> None:
        impossible = float("-inf")
        if attribute == _TIME:
            if not may_end:
                logits[:, self.model.config.end_id] = impossible
            if latest_time is not None:
                logits[:, latest_time + 1 : self.model.config.end_id] = impossible
            highest = self.model.config.vocab_sizes[_PITCH] - 1
            logits[self.last_pitch >= highest, 0] = impossible  # nothing can follow it within the same onset
        elif attribute == _PITCH:
            for row, time in enumerate(chosen[_TIME].tolist()):
                if time == 0:  # the same onset: pitches rise, so that none is struck twice
                    logits[row, : int(self.last_pitch[row]) + 1] = impossible
                barred = self.phrases[row].barred(time)
                # Better a repetition than nothing to choose from.
                if barred and logits[row].isfinite().sum() > len(barred):
                    logits[row, barred] = impossible


__all__ = ["NoteSampler", "PhraseMemory", "SamplingOptions"]
