"""Who has pressed Stop, and whose pieces shall end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import gradio as gr


class Stopped(Exception):
    """Stop was pressed before anything could be heard."""


class Stops:
    """Which visitors have pressed Stop, per task. A piece ends by itself when it sees that: so it can leave what was
    made, which an event that Gradio cancels cannot.

    Args:
        tasks: names of all that can be asked for.
    """

    def __init__(self, tasks: tuple[str, ...]) -> None:
        self.tasks = tasks
        self._pressed: set[tuple[str | None, str]] = set()
        self._asked: set[tuple[str | None, str]] = set()

    def start(self, visitor: str | None, task: str) -> bool:
        """A piece was asked for: those of other tasks end. While a piece of this task waits or is made, Gradio drops the
        second press, and a Stop before it stays pressed.

        Returns:
            whether a new piece begins.
        """
        self.stop(visitor, *(other for other in self.tasks if other != task))
        new = (visitor, task) not in self._asked
        self._asked.add((visitor, task))
        return new

    @contextmanager
    def piece(self, visitor: str | None, task: str) -> Iterator[Callable[[], bool]]:
        """While a piece is made: gives what tells whether it shall end."""
        self._asked.add((visitor, task))
        try:
            yield lambda: self.pressed(visitor, task)
        finally:
            self._asked.discard((visitor, task))
            self._pressed.discard((visitor, task))

    def stop(self, visitor: str | None, *tasks: str) -> None:
        """Stop was pressed: the pieces of these tasks that wait or are made end."""
        self._pressed.update({(visitor, task) for task in tasks} & self._asked)

    def pressed(self, visitor: str | None, task: str) -> bool:
        """Whether the piece of a task shall end."""
        return (visitor, task) in self._pressed

    def forget(self, visitor: str | None) -> None:
        """A visitor has left, whose pieces Gradio ends: nothing is kept of them."""
        for task in self.tasks:
            self._pressed.discard((visitor, task))
            self._asked.discard((visitor, task))


def visitor_of(request: gr.Request | None) -> str | None:
    """The visitor's session; `None` for programs without one."""
    return getattr(request, "session_hash", None)
