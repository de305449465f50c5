"""N-gram models: what counting alone can predict, the baseline of models of sequences.

A symbol is predicted from a chain of contexts, each of which refines the one before. Probabilities of neighboring levels
are interpolated as in the hierarchical Pitman-Yor language model with one table per type (Teh, ACL 2006), of which
Kneser-Ney smoothing (strength 0) and Dirichlet smoothing (discount 0) are special cases.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_FACTOR = np.uint64(0x9E3779B97F4A7C15)


def _mixed(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """One number per pair; 64 bits make equal numbers of unequal pairs one in 10^6 for millions of pairs."""
    mixed = (first ^ (second.astype(np.uint64) + np.uint64(1))) * _FACTOR
    return (mixed ^ (mixed >> np.uint64(32))) * _FACTOR


def nested_contexts(features: Sequence[np.ndarray], items: int) -> list[np.ndarray]:
    """Contexts of growing size: nothing, the first feature, the first two, ...

    Args:
        features: (item,) integers each, the most telling first.
        items: number of items.

    Returns:
        one more than there are features, (item,) uint64 each, equal where the features are.
    """
    contexts = [np.zeros(items, dtype=np.uint64)]
    for place, feature in enumerate(features):
        salted = _mixed(contexts[-1], np.full(items, place))
        contexts.append(_mixed(salted, np.asarray(feature, dtype=np.int64)))
    return contexts


class _Level:
    """Counts of one context's symbols."""

    def __init__(self, contexts: np.ndarray, pairs: np.ndarray) -> None:
        self.pairs, first, counts = np.unique(pairs, return_index=True, return_counts=True)
        self.pair_counts = counts.astype(np.float64)
        self.contexts, place = np.unique(contexts[first], return_inverse=True)
        self.totals = np.bincount(place, self.pair_counts)
        self.types = np.bincount(place).astype(np.float64)
        self.first = first

    @staticmethod
    def _found(table: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        place = np.minimum(np.searchsorted(table, wanted), len(table) - 1)
        return np.where(table[place] == wanted, values[place], 0.0)

    def counts(self, contexts: np.ndarray, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each item: how often its symbol, how often any, and how many different ones followed its context."""
        return (
            self._found(self.pairs, self.pair_counts, pairs),
            self._found(self.contexts, self.totals, contexts),
            self._found(self.contexts, self.types, contexts),
        )


class Ngram:
    """Probabilities of symbols from counts in nested contexts.

    Args:
        symbols: (item,) 0..vocab_size - 1, those to learn from.
        contexts: of `nested_contexts`.
        vocab_size: symbols that there may be; below the first level all are alike.
        discount: taken off every count, in [0, 1).
        strength: how many observations the coarser level counts as, beside what is discounted.
        continuations: count in coarser levels how many finer contexts a symbol follows, as Kneser and Ney do, rather than
            how often it occurs.

    Raises:
        ValueError: a number is out of range, or there is nothing to learn from.
    """

    def __init__(
        self,
        symbols: np.ndarray,
        contexts: Sequence[np.ndarray],
        vocab_size: int,
        discount: float = 0.75,
        strength: float = 1.0,
        continuations: bool = False,
    ) -> None:
        if not 0 <= discount < 1 or strength < 0 or discount + strength == 0:
            raise ValueError(
                "discount must be in [0, 1) and strength at least 0, not both 0, got "
                f"discount={discount}, strength={strength}."
            )
        if not len(symbols) or symbols.min() < 0 or symbols.max() >= vocab_size:
            raise ValueError(f"symbols must be at least one number in 0..{vocab_size - 1}.")
        self.vocab_size, self.discount, self.strength = vocab_size, discount, strength
        self.levels: list[_Level] = []
        chosen = np.arange(len(symbols))
        for context in reversed(contexts):
            level = _Level(context[chosen], _mixed(context[chosen], symbols[chosen]))
            self.levels.insert(0, level)
            if continuations:
                chosen = chosen[level.first]  # each symbol once per finer context

    def probabilities(self, symbols: np.ndarray, contexts: Sequence[np.ndarray]) -> np.ndarray:
        """(item,) probability of each symbol in its contexts."""
        found = np.full(len(symbols), 1.0 / self.vocab_size)
        for level, context in zip(self.levels, contexts, strict=True):
            found = self.refined(level, found, symbols, context)
        return found

    def refined(self, level: _Level, coarser: np.ndarray, symbols: np.ndarray, context: np.ndarray) -> np.ndarray:
        """Probabilities of one level from those of the coarser one, (item,)."""
        count, total, types = level.counts(context, _mixed(context, symbols))
        kept = np.maximum(count - self.discount, 0.0)
        rest = self.strength + self.discount * types
        # A context that never occurred tells nothing: without strength it would be zero by zero.
        known = total + self.strength > 0
        return np.where(known, (kept + rest * coarser) / np.where(known, total + self.strength, 1.0), coarser)


__all__ = ["Ngram", "nested_contexts"]
