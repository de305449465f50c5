"""Words that messages of the whole package share."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# More names than this are no help in a message.
_MOST_NAMES = 40


def suggest(word: object, known: Iterable[str]) -> str:
    """The last sentence of a message about an unknown name: the nearest of the known ones, or all of them.

    Args:
        word: what was received.
        known: what would have been understood.

    Returns:
        `Did you mean 'x'?` if one is near, else `Known: 'x', 'y'.`; empty if there are too many to list.
    """
    names = sorted(known)
    near = difflib.get_close_matches(str(word), names, n=1)
    if near:
        return f"Did you mean {near[0]!r}?"
    return f"Known: {', '.join(map(repr, names))}." if 0 < len(names) <= _MOST_NAMES else ""


def duration_in_words(minutes: float) -> str:
    """A length of time as one says it: 40 s, 12 min, 3.5 h."""
    if minutes < 1:
        return f"{round(60 * minutes)} s"
    return f"{round(minutes)} min" if minutes < 90 else f"{minutes / 60:.1f} h"


__all__ = ["duration_in_words", "suggest"]
