"""Which token may follow: whatever a language model draws under these rules is music that can be written as a file.

The rules are those of the two schemes of Thickstun et al., Anticipatory Music Transformer (arXiv 2306.08620); its sampler
forbids the wrong slots and times in the past, too. Ours also keep to the instruments that fit into a MIDI file, end only notes
that sound, end pieces only in silence, and let a model tell known notes itself, five seconds ahead, if it shall.
"""

from __future__ import annotations

import abc
import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator

import torch
from transformers import LogitsProcessor

from melreformer_hf.processing.midi.arrival import CONTROL, DELTA_TICKS, DURATION, EVENT_SIZE, NOTE, REST, SEPARATOR
from melreformer_hf.processing.midi.notes import DRUMS, NUM_PITCHES
from melreformer_hf.processing.midi.vocabulary import (
    ARRIVAL,
    INTERARRIVAL,
    MAX_DURATION_TICKS,
    MAX_TIME_TICKS,
    VOCABULARIES,
)

MAX_MELODIC_INSTRUMENTS = 15  # a MIDI file has 16 channels, one of them for drums
_FLAGS = (ARRIVAL.first["autoregress"], ARRIVAL.first["anticipate"])
_ON, _OFF, _BREAK = INTERARRIVAL.first["on"], INTERARRIVAL.first["off"], INTERARRIVAL.first["separator"]

Ranges = Iterator[tuple[int, int]]


class TokenProgress(abc.ABC):
    """Where a sequence of tokens stands, and what may follow.

    Args:
        controls: whether known notes may be drawn (`arrival` only).
        separators: whether a piece may end.
    """

    def __init__(self, controls: bool = False, separators: bool = True) -> None:
        self.controls, self.separators = controls, separators
        self.instruments: set[int] = set()

    @abc.abstractmethod
    def push(self, token: int) -> None:
        """Take a token, of the prompt or drawn; tokens that break the rules are taken as well as they can be."""

    @abc.abstractmethod
    def allowed(self) -> Ranges:
        """Token numbers that may follow, as ranges (first, behind the last)."""

    @property
    def between_events(self) -> bool:
        """Whether all events so far are whole."""
        return True

    def _playable(self, first: int) -> Ranges:
        """Notes of all instruments that a file has room for, in the block that begins at `first`."""
        if len(self.instruments) < MAX_MELODIC_INSTRUMENTS:
            yield first, first + NUM_PITCHES * (DRUMS + 1)
            return
        for instrument in (*self.instruments, DRUMS):
            yield first + NUM_PITCHES * instrument, first + NUM_PITCHES * (instrument + 1)

    def _play(self, instrument: int) -> None:
        if instrument != DRUMS:
            self.instruments.add(instrument)


class ArrivalProgress(TokenProgress):
    """Progress of `arrival` tokens: events of a time, a duration and a note (or rest), in the order of time."""

    def __init__(self, controls: bool = False, separators: bool = True) -> None:
        super().__init__(controls, separators)
        self.event: list[int] = []
        self.now = self.last_control = 0

    @property
    def between_events(self) -> bool:
        return not self.event

    def push(self, token: int) -> None:
        if token in _FLAGS:
            return
        self.event.append(token)
        if len(self.event) < EVENT_SIZE:
            return
        time, _, note = self.event
        self.event = []
        if note == SEPARATOR:
            self.now = self.last_control = 0
        elif note >= CONTROL:
            self.last_control = max(self.last_control, time - CONTROL)
            self._play((note - CONTROL - NOTE) // NUM_PITCHES)
        else:
            self.now = max(self.now, time)
            if note != REST:
                self._play((note - NOTE) // NUM_PITCHES)

    def allowed(self) -> Ranges:
        if not self.event:
            yield min(self.now, MAX_TIME_TICKS - 1), MAX_TIME_TICKS
            if self.controls:
                # Told as soon as they come into sight, not before, and in their order.
                first, last = max(self.now, self.last_control), min(self.now + DELTA_TICKS, MAX_TIME_TICKS - 1)
                yield from [(CONTROL + first, CONTROL + last + 1)] if first <= last else []
            yield from [(SEPARATOR, SEPARATOR + 1)] if self.separators else []
            return
        kind = 0 if self.event[0] < CONTROL else CONTROL
        if self.event[0] == SEPARATOR:
            yield SEPARATOR, SEPARATOR + 1
        elif len(self.event) == 1:
            yield kind + DURATION, kind + NOTE
        else:
            yield from self._playable(kind + NOTE)
            if self.event[1] == DURATION:
                yield REST, REST + 1


class InterarrivalProgress(TokenProgress):
    """Progress of `interarrival` tokens: at most one wait between starts and ends, ends only of what sounds."""

    def __init__(self, controls: bool = False, separators: bool = True) -> None:
        if controls:
            raise ValueError("controls must be False for the scheme 'interarrival', which has none, got True.")
        super().__init__(controls, separators)
        self.sounding: Counter[int] = Counter()
        self.waited = False

    def push(self, token: int) -> None:
        self.waited = token < MAX_DURATION_TICKS
        if token == _BREAK:
            self.sounding.clear()
        elif token >= _OFF:
            note = token - _OFF
            self.sounding[note] -= 1
            if self.sounding[note] <= 0:
                del self.sounding[note]
        elif token >= _ON:
            self.sounding[token - _ON] += 1
            self._play((token - _ON) // NUM_PITCHES)

    def allowed(self) -> Ranges:
        if not self.waited:
            yield 1, MAX_DURATION_TICKS  # a wait of nothing is not written
            if self.separators and not self.sounding:
                yield _BREAK, _BREAK + 1
        yield from self._playable(_ON)
        for note in self.sounding:
            yield _OFF + note, _OFF + note + 1


PROGRESSES: dict[str, type[TokenProgress]] = {"arrival": ArrivalProgress, "interarrival": InterarrivalProgress}


@dataclasses.dataclass
class _Row:
    """A row of the batch, read so far."""

    tokens: torch.Tensor
    progress: TokenProgress


class MidiGrammar(LogitsProcessor):
    """Lets `generate` draw only tokens that make music: `model.generate(..., logits_processor=[MidiGrammar("arrival")])`.

    Each sample decodes; one that its greatest length cuts within an event does with `decode_notes(ids, partial=True)`.
    Works with greedy decoding, sampling and beams. One object serves one call of `generate` after the other.

    Args:
        scheme: `arrival` or `interarrival`.
        controls: whether known notes may be drawn (`arrival` only). They stand for notes that are given, so usually not.
        separators: whether separators may be drawn, with which a piece ends; `eos_token_id=tokenizer.eos_token_id` then
            ends the sample as well.
        pad_token_id: of padding at the left of shorter prompts, which is passed over; `None` where there is none.

    Raises:
        ValueError: no such scheme, or one without controls where they are asked for.
    """

    def __init__(
        self, scheme: str, controls: bool = False, separators: bool = True, pad_token_id: int | None = None
    ) -> None:
        if scheme not in PROGRESSES:
            raise ValueError(f"scheme must be one of {sorted(PROGRESSES)}, got {scheme!r}.")
        self.scheme, self.controls, self.separators, self.pad_token_id = scheme, controls, separators, pad_token_id
        self._begin()
        self._rows: list[_Row] = []

    def _begin(self) -> TokenProgress:
        return PROGRESSES[self.scheme](self.controls, self.separators)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Scores with minus infinity where no token may follow.

        Args:
            input_ids: (row, token).
            scores: (row, vocabulary).

        Raises:
            ValueError: the vocabulary is smaller than the scheme's.
        """
        size = VOCABULARIES[self.scheme].size
        if scores.shape[-1] < size:
            raise ValueError(
                f"The model must have the {size} tokens of the scheme {self.scheme!r}, got {scores.shape[-1]}."
            )
        rows = input_ids.cpu()
        forbidden = torch.ones(scores.shape, dtype=torch.bool)
        self._rows = [self._read(index, row) for index, row in enumerate(rows)]
        for mask, row in zip(forbidden, self._rows, strict=True):
            for first, behind in row.progress.allowed():
                mask[first:behind] = False
        return scores.masked_fill(forbidden.to(scores.device), -torch.inf)

    def _read(self, index: int, tokens: torch.Tensor) -> _Row:
        """The row at `index` with its progress: one token more than at the last call, or a new sequence."""
        known = self._rows[index] if index < len(self._rows) else None
        if known is not None and len(known.tokens) < len(tokens) and known.tokens.equal(tokens[: len(known.tokens)]):
            fresh, progress = tokens[len(known.tokens) :], known.progress
        else:
            fresh, progress = tokens[self._padding(tokens) :], self._begin()
        for token in fresh.tolist():
            if 0 <= token < VOCABULARIES[self.scheme].size:
                progress.push(token)
        return _Row(tokens, progress)

    def _padding(self, tokens: torch.Tensor) -> int:
        """Number of padding tokens that a row begins with."""
        if self.pad_token_id is None:
            return 0
        real = (tokens != self.pad_token_id).nonzero()
        return int(real[0]) if len(real) else len(tokens)


def first_violation(tokens: Iterable[int], scheme: str, controls: bool = True) -> int | None:
    """Index of the first token that the grammar of a scheme would not have allowed; None if all are in order.

    Args:
        tokens: numbers of the scheme, flags included, padding not.
        scheme: `arrival` or `interarrival`.
        controls: whether known notes are allowed.
    """
    progress = PROGRESSES[scheme](controls if scheme == "arrival" else False)
    for index, token in enumerate(tokens):
        is_flag = scheme == "arrival" and token in _FLAGS
        if not is_flag and not any(first <= token < behind for first, behind in progress.allowed()):
            return index
        progress.push(token)
    return None


__all__ = ["ArrivalProgress", "InterarrivalProgress", "MidiGrammar", "TokenProgress", "first_violation"]
