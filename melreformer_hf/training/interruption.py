"""Ctrl-C and SIGTERM end a training after the step at hand, with a checkpoint."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Launchers pass on to their processes what the terminal has sent to all of them already.
_REPEATS_SECONDS = 3.0


class TrainingInterrupted(SystemExit):
    """A training was asked to stop, and has saved itself; uncaught, it ends the process as a shell expects it.

    Args:
        signum: the signal that asked.
        step: steps done.
        checkpoint: where it is.
    """

    def __init__(self, signum: int, step: int, checkpoint: Path) -> None:
        self.signum, self.step, self.checkpoint = signum, step, checkpoint
        super().__init__(128 + signum)

    def __str__(self) -> str:
        return (
            f"stopped by {signal.Signals(self.signum).name} after step {self.step}; saved {self.checkpoint}. Continue "
            "with --resume latest."
        )


class Interruption:
    """Within its block the first Ctrl-C or SIGTERM is only remembered; a later one acts at once, as usual.

    Outside the main thread, where signals cannot be caught, nothing changes.

    Attributes:
        signum: the signal that asked to stop, `None` before.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._time = 0.0
        self._before: dict[int, object] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self._before = {signum: signal.signal(signum, self._remember) for signum in _SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _remember(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is None:
            self.signum, self._time = signum, time.monotonic()
            # Not print: a handler may run in the middle of another print, which Python refuses.
            os.write(2, b"\nstopping after this step, with a checkpoint; again to stop at once\n")
        elif time.monotonic() - self._time > _REPEATS_SECONDS:
            self.__exit__()
            signal.raise_signal(signum)


def ignore_interruptions(worker: int) -> None:
    """For workers that prepare batches: signals of the terminal go to all processes, and the training still needs them."""
    for signum in _SIGNALS:
        signal.signal(signum, signal.SIG_IGN)


__all__ = ["Interruption", "TrainingInterrupted", "ignore_interruptions"]
