"""Copies are found in any key; n-grams' probabilities are those that one computes by hand, and sum to one."""

from __future__ import annotations

import numpy as np
import pytest

from melreformer_hf.metrics.ngrams import Ngram, nested_contexts
from melreformer_hf.metrics.note_copies import EventIndex, note_events


def rows(times, pitches) -> np.ndarray:
    made = np.zeros((len(times), 5), dtype=np.int64)
    made[:, 0], made[:, 1] = times, pitches
    return made


def test_events_are_steps():
    assert note_events(rows([0, 7, 9], [60, 64, 59])).tolist() == [[4, 7], [-5, 9]]
    assert len(note_events(rows([0], [60]))) == 0


def test_copies_are_found_in_another_key_but_not_in_another_rhythm():
    random = np.random.default_rng(0)
    piece = rows(random.integers(0, 40, 60), random.integers(40, 80, 60))
    index = EventIndex([note_events(piece)], length=12)
    copy = piece[20:33] + np.array([0, 5, 0, 0, 0])  # 13 notes are 12 events
    assert index.copied(note_events(copy)).tolist() == [True]
    assert index.copied(note_events(copy[:12])).tolist() == []
    around = np.concatenate([rows([3, 3], [60, 30]), copy, rows([3], [99])])
    assert index.copied(note_events(around)).tolist() == [False, False, True, False]
    for changed, column in ((6, 0), (6, 1)):
        other = copy.copy()
        other[changed, column] += 1
        assert not index.copied(note_events(other)).any()
    # The same events in another order are no copy.
    turned = np.concatenate([copy[:1], copy[:0:-1]])
    assert not index.copied(note_events(turned)).any()
    assert not EventIndex([], length=3).copied(note_events(piece)).any()
    with pytest.raises(ValueError, match="length"):
        EventIndex([], length=0)


def test_contexts_are_equal_where_their_features_are():
    first, second = np.array([1, 1, 2, 2]), np.array([5, 6, 5, 5])
    nothing, one, both = nested_contexts([first, second], 4)
    assert len(set(nothing.tolist())) == 1
    assert one[0] == one[1] != one[2] == one[3]
    assert both[2] == both[3] and len(set(both.tolist())) == 3


def model(**changes) -> tuple[Ngram, np.ndarray]:
    symbols, before = np.array([0, 0, 1, 2, 0]), np.array([7, 7, 7, 8, 8])
    return Ngram(symbols, nested_contexts([before], 5), 4, **changes), before


def asked(net: Ngram, symbol: int, before: int) -> float:
    return float(net.probabilities(np.array([symbol]), nested_contexts([np.array([before])], 1))[0])


def test_interpolation_by_hand():
    net, _ = model(discount=0.5, strength=1.0)
    # Without context: 5 notes of 3 symbols; 0 three times. Below it, one in four.
    share = (3 - 0.5 + (1 + 0.5 * 3) / 4) / (5 + 1)
    rare, never = (1 - 0.5 + 2.5 / 4) / 6, (2.5 / 4) / 6
    assert asked(net, 0, 99) == pytest.approx(share)  # a context that never occurred: strength 1 of 1
    assert asked(net, 3, 99) == pytest.approx(never)
    assert asked(net, 0, 7) == pytest.approx((2 - 0.5 + (1 + 0.5 * 2) * share) / (3 + 1))
    assert asked(net, 2, 7) == pytest.approx((1 + 0.5 * 2) * rare / (3 + 1))


def test_continuations_count_contexts():
    net, _ = model(discount=0.5, strength=0.0, continuations=True)
    # 0 follows both contexts, 1 and 2 one each: four continuations.
    share = (2 - 0.5 + 0.5 * 3 / 4) / 4
    assert asked(net, 0, 99) == pytest.approx(share)
    assert asked(net, 0, 8) == pytest.approx((1 - 0.5 + 0.5 * 2 * share) / 2)


@pytest.mark.parametrize(
    "settings", ({"discount": 0.0, "strength": 2.0}, {"discount": 0.9, "continuations": True}, {})
)
def test_probabilities_sum_to_one(settings):
    net, _ = model(**settings)
    for before in (7, 8, 99):
        assert sum(asked(net, symbol, before) for symbol in range(4)) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "changes, words",
    (
        ({"discount": 1.0}, "discount"),
        ({"strength": -1.0}, "strength"),
        ({"discount": 0.0, "strength": 0.0}, "not both"),
    ),
)
def test_numbers_out_of_range_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        model(**changes)
    with pytest.raises(ValueError, match="symbols"):
        Ngram(np.array([4]), nested_contexts([], 1), 4)
