"""Music of any length from a causal language model of `arrival` tokens, such as the anticipatory checkpoints.

Source: Thickstun et al., Anticipatory Music Transformer (arXiv 2306.08620), original repository jthickstun/anticipation,
anticipation/sample.py: the model sees the latest events that fit into its context, with times counted from the earliest of
them. Deviations: the window moves by several events at once, so that what is computed can be kept (`stride=1` moves as the
original's does); it is shortened where it would span more time than there are tokens for; the rules of `MidiGrammar` hold;
at most 128 events begin at one tick, so that every drawing ends.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from transformers import PreTrainedModel

from melreformer_hf.nn.sampling import choose
from melreformer_hf.processing.midi.arrival import (
    DELTA_TICKS,
    EVENT_SIZE,
    anticipate,
    clip_events,
    count_instruments,
    earliest_tick,
    events_to_notes,
    latest_tick,
    notes_to_events,
    pad_events,
    shift_events,
    split_events,
    triples,
)
from melreformer_hf.processing.midi.grammar import ArrivalProgress
from melreformer_hf.processing.midi.notes import DRUMS, TICKS_PER_SECOND, MidiNote, seconds_to_ticks
from melreformer_hf.processing.midi.vocabulary import ARRIVAL, MAX_TIME_TICKS

_CONTROL = ARRIVAL.first["control_time"]
# Of a context of 1024 tokens the original fills 1017 with events.
_SPARE_TOKENS = 7
# Time that is left for what comes next when a window spans as much as there are tokens for.
_ROOM_TICKS = 20 * TICKS_PER_SECOND
# A model may stay at one moment for ever; after so many notes there time goes on.
_MOST_AT_ONCE = 128


class _Window:
    """The model's view of the latest events, and what it computed of them.

    Args:
        model: the language model.
        flag: first token of every window.
        stride: events that leave at once; `None` is a fifth of what fits.
    """

    def __init__(self, model: PreTrainedModel, flag: int, stride: int | None) -> None:
        self.limit = (model.config.max_position_embeddings - _SPARE_TOKENS) // EVENT_SIZE
        stride = max(1, self.limit // 5) if stride is None else stride
        self.model, self.flag, self.stride = model, flag, stride
        if not 1 <= stride < self.limit:
            raise ValueError(f"stride must be in 1..{self.limit - 1}, events of the model's context; got {stride}.")
        self.first = 0
        self.fed: list[int] = []
        self.cache = None

    def view(self, events: list[int]) -> tuple[list[int], int]:
        """Events that the model sees, times counted from the earliest, and that time."""
        if len(events) // EVENT_SIZE - self.first > self.limit:
            self.first = len(events) // EVENT_SIZE - self.limit + self.stride - 1
        seen = events[EVENT_SIZE * self.first :]
        while seen and latest_tick(seen) - earliest_tick(seen) > MAX_TIME_TICKS - _ROOM_TICKS:
            self.first += 1
            seen = seen[EVENT_SIZE:]
        offset = earliest_tick(seen)
        return shift_events(seen, -offset), offset

    def logits(self, tokens: list[int]) -> torch.Tensor:
        """(1, vocabulary) of what follows the flag and the tokens."""
        sequence = [self.flag, *tokens]
        if self.cache is None or self.fed != sequence[: len(self.fed)]:
            self.fed, self.cache = [], None
        fresh = torch.tensor([sequence[len(self.fed) :]], device=self.model.device)
        output = self.model(fresh, past_key_values=self.cache, use_cache=True)
        self.fed, self.cache = sequence, output.past_key_values
        return output.logits[:, -1].float()


@torch.no_grad()
def generate_arrival(
    model: PreTrainedModel,
    end: float,
    *,
    start: float = 0.0,
    given: Iterable[MidiNote] = (),
    known: Iterable[MidiNote] = (),
    temperature: float = 1.0,
    top_p: float = 0.98,
    stride: int | None = None,
    generator: torch.Generator | None = None,
) -> list[MidiNote]:
    """Notes from `start` to `end`, drawn between those that are given.

    Args:
        model: causal language model of transformers with the 55,028 tokens of `arrival`, or more.
        end: seconds; drawing ends with the first note that would begin there or later.
        start: seconds; drawn notes begin no earlier.
        given: music to go on from: what begins up to `start` is heard as past, what begins later is told five seconds
            ahead.
        known: music to accompany, all of it told ahead, before `start` as well.
        temperature: divides the logits.
        top_p: draw among the likeliest tokens that together reach this probability.
        stride: events that leave the model's view at once when its context is full: a fifth of them by default; 1 is the
            original's, and slow.
        generator: of random numbers.

    Returns:
        given, known and drawn notes in the order of their onsets; velocities are 72, as the tokens tell none.

    Raises:
        ValueError: `start`, `end`, `stride`, temperature or top_p break their rules, or the model's vocabulary is
            smaller than the scheme's.
    """
    if model.config.vocab_size < ARRIVAL.size:
        raise ValueError(f"model must have the {ARRIVAL.size} tokens of `arrival`, got {model.config.vocab_size}.")
    if not 0 <= start < end:
        raise ValueError(f"start must be at least 0 and before end, got start={start!r}, end={end!r}.")
    first, last = seconds_to_ticks(start), seconds_to_ticks(end)
    prompt, controls = _prompt(given, known, first)
    flag = ARRIVAL.first["anticipate" if controls else "autoregress"]
    window, progress = _Window(model, flag, stride), ArrivalProgress(separators=False)
    progress.instruments.update(set(count_instruments(prompt + controls)) - {DRUMS})
    events, late = anticipate(prompt, controls)
    waiting, now = list(triples(late))[::-1], latest_tick(prompt)
    while True:
        while waiting and now >= waiting[-1][0] - _CONTROL - DELTA_TICKS:
            events += waiting.pop()
        crowded = events[-EVENT_SIZE * _MOST_AT_ONCE :: EVENT_SIZE] == [now] * _MOST_AT_ONCE
        drawn = _draw(window, events, progress, max(first, now + crowded), (temperature, top_p, generator))
        if drawn[0] >= last:
            break
        events += drawn
        now = drawn[0]
    return sorted(events_to_notes(events + [token for event in reversed(waiting) for token in event]))


def _prompt(given: Iterable[MidiNote], known: Iterable[MidiNote], first: int) -> tuple[list[int], list[int]]:
    """Events up to the tick `first` without silence, and everything that is told ahead, in order."""
    past, future = _events(given), []
    if past:
        future = clip_events(past, first + 1, latest_tick(past), cut_durations=False)
        past = clip_events(past, 0, first, cut_durations=False)
    ahead = sorted([*triples(future), *triples(_events(known))], key=lambda event: event[0])
    told = [number for event in ahead for number in event]
    return pad_events(past, first), split_events(told, [True] * len(ahead))[1]


def _events(notes: Iterable[MidiNote]) -> list[int]:
    ordered = sorted(map(MidiNote._make, notes), key=lambda note: note.onset)
    return notes_to_events(ordered)[0] if ordered else []


def _draw(
    window: _Window,
    events: list[int],
    progress: ArrivalProgress,
    earliest: int,
    sampling: tuple[float, float, torch.Generator | None],
) -> list[int]:
    """The next event, beginning at the tick `earliest` or later."""
    temperature, top_p, generator = sampling
    tokens, offset = window.view(events)
    # The grammar counts as the model does: from the earliest event in view.
    progress.now = max(earliest - offset, 0)
    drawn: list[int] = []
    for _ in range(EVENT_SIZE):
        logits = window.logits(tokens + drawn)
        forbidden = torch.ones_like(logits, dtype=torch.bool)
        for begin, behind in progress.allowed():
            forbidden[:, begin:behind] = False
        token = int(choose(logits.masked_fill(forbidden, -torch.inf), True, temperature, None, top_p, generator))
        progress.push(token)
        drawn.append(token)
    return [drawn[0] + offset, *drawn[1:]]


__all__ = ["generate_arrival"]
