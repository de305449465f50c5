"""Ctrl-C and SIGTERM end a training after the step at hand, with a checkpoint."""

from __future__ import annotations

import multiprocessing
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


class PatientWorkers:
    """Start of the workers that prepare batches (`worker_init_fn`): they outlive signals that are meant for the training.

    Terminals and schedulers signal all processes at once, but the step at hand still needs its batches. Once the training
    is over (`close`), SIGTERM ends a worker again: that is how Python gets rid of them when it exits.
    """

    def __init__(self) -> None:
        self._closed = multiprocessing.RawValue("b", 0)  # shared with the workers, without a lock

    def __call__(self, worker: int) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._terminate)

    def _terminate(self, signum: int, frame: FrameType | None) -> None:
        if self._closed.value:
            os._exit(0)

    def close(self) -> None:
        """The training is over, however it ended."""
        self._closed.value = 1


__all__ = ["Interruption", "PatientWorkers", "TrainingInterrupted"]
