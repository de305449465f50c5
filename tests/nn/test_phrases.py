"""The memory of phrases forgets none, mistakes few, and knows them in any order that they came in."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from melreformer_hf.nn.phrases import PhraseFilter, event_numbers, phrase_numbers, phrases_of


def piece(seed: int, count: int = 400) -> np.ndarray:
    random = np.random.default_rng(seed)
    return np.stack([random.integers(-30, 31, count), random.integers(0, 110, count)], axis=1)


def test_every_event_and_every_phrase_has_its_own_number():
    events = np.array([(a, b) for a in range(-127, 128) for b in range(110)])
    assert len(np.unique(event_numbers(events))) == len(events)
    pairs = np.array([(a, b) for a in event_numbers(events[:80]) for b in event_numbers(events[:80])])
    assert len(np.unique(phrase_numbers(pairs))) == len(pairs)


def test_phrases_are_all_runs_of_their_length():
    events = piece(0, 9)
    expected = [phrase_numbers(event_numbers(events[start : start + 4])[None])[0] for start in range(6)]
    assert phrases_of(events, 4).tolist() == expected
    assert len(phrases_of(events, 9)) == 1 and len(phrases_of(events, 10)) == 0


def test_no_phrase_is_forgotten_and_one_in_hundreds_is_mistaken():
    memory = PhraseFilter(40_000, 5)
    memory.learn(piece(seed) for seed in range(60))  # 23,760 phrases in 1.7 bytes each
    before = memory.table.clone()
    assert all(memory.knows(phrases_of(piece(seed), 5)).all() for seed in range(60))
    others = np.concatenate([phrases_of(piece(seed), 5) for seed in range(1000, 1100)])
    assert 0 < memory.knows(others).mean() < 1 / 300
    memory.learn([piece(2000)])
    assert memory.knows(phrases_of(piece(2000), 5)).all()
    assert torch.equal(memory.table & before, before), "what was known stays known"
    assert not PhraseFilter(40_000, 5).knows(phrases_of(piece(0), 5)).any()


@pytest.mark.parametrize("num_bytes", (1, 7, 4096))
def test_any_size_of_the_table_holds(num_bytes):
    memory = PhraseFilter(num_bytes, 3)
    memory.learn([piece(0)])
    assert memory.knows(phrases_of(piece(0), 3)).all()


def test_what_would_complete_a_phrase():
    memory, events = PhraseFilter(8192, 6), piece(0)
    memory.learn([events])
    candidates = np.stack([np.arange(-40, 41), np.full(81, events[105, 1])], axis=1)
    found = memory.completing(events[100:105], candidates)
    assert candidates[found][:, 0].tolist() == [events[105, 0]]
    later = candidates + np.array([0, 1])
    assert not memory.completing(events[100:105], later).any()
