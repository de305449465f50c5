"""CPU threads that do not collapse beside other work.

Idle OpenMP threads spin, by default, while they wait for one another. When other programs use the cores, a thread that
is not running makes all others spin for it, and two threads are many times slower than one. Sleeping in place of
spinning (OMP_WAIT_POLICY=PASSIVE) cures it, but the variable is read once, when torch loads its OpenMP runtime: programs
set it before they import torch, and a library that comes too late uses fewer threads while the machine is busy.
"""

from __future__ import annotations

import atexit
import os
import queue
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch

Item = TypeVar("Item")
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def sleep_while_waiting() -> bool:
    """Ask OpenMP threads to sleep while they wait; a policy that the user has set stays.

    Returns:
        whether it was in time: `False` if torch is loaded already.
    """
    if "torch" in sys.modules:
        return False
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    return True


def threads_sleep() -> bool:
    """Whether the environment makes waiting threads sleep."""
    passive = os.environ.get("OMP_WAIT_POLICY", "").upper() == "PASSIVE"
    return passive or os.environ.get("GOMP_SPINCOUNT") == "0"


def available_cores() -> int:
    """Cores that this process may use: its affinity, and the quota of its container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _QUOTA.read_text().split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):  # no such file, or "max": no quota
        return cores


def choose_threads(threads: int | None = None) -> int:
    """Set torch's threads: as asked, or no more than there are cores for this process.

    Returns:
        the number that was set.
    """
    import torch

    chosen = threads if threads is not None else min(torch.get_num_threads(), available_cores())
    torch.set_num_threads(chosen)
    return chosen


def calm_number(device: torch.device) -> int:
    """Threads that do not get in their own way now: torch's number, or as many as there are idle cores, at least one,
    if threads spin while they wait."""
    import torch

    usual = torch.get_num_threads()
    if device.type != "cpu" or usual == 1 or threads_sleep() or not hasattr(os, "getloadavg"):
        return usual
    return max(1, min(usual, round(available_cores() - os.getloadavg()[0])))


@contextmanager
def using_threads(number: int) -> Iterator[None]:
    """Inside, torch uses so many threads."""
    import torch

    usual = torch.get_num_threads()
    if number == usual:
        yield
        return
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(usual)


def made_ahead(make: Callable[[Callable[[], bool]], Iterator[Item]], most: int = 1) -> Generator[Item, None, None]:
    """What an iterator yields, made by a thread of its own while the caller works with what came before.

    Args:
        make: gives the iterator, in that thread, of whose CPU threads it uses one. It is handed a function that says whether
            nothing more is wanted, which an iterator may ask between two items to end early.
        most: items that are made before they are asked for; so much memory it takes, however many there are.

    Returns:
        the items in their order; what `make` or its iterator raises is raised, with its traceback. Closed early, it ends
        the thread.
    """
    import torch

    usual = torch.get_num_threads()
    made: queue.SimpleQueue[tuple[bool, Item | BaseException]] = queue.SimpleQueue()
    room, stopped = threading.Semaphore(most), threading.Event()

    def work() -> None:
        torch.set_num_threads(1)
        try:
            items = make(stopped.is_set)
            while room.acquire() and not stopped.is_set():
                made.put((True, next(items)))
        except BaseException as error:  # StopIteration too: whatever it is, it is the caller's
            made.put((False, error))
        finally:
            torch.set_num_threads(usual)  # what threads begin with that are started later

    return _taken(threading.Thread(target=work, name="melreformer-ahead", daemon=True), made, room, stopped)


def _taken(
    worker: threading.Thread, made: queue.SimpleQueue, room: threading.Semaphore, stopped: threading.Event
) -> Generator[Item, None, None]:
    def stop() -> None:
        stopped.set()
        room.release()
        worker.join()

    # Nobody waits for the thread of a stream that was left open; but it has to end before the interpreter does.
    atexit.register(stop)
    worker.start()
    try:
        while True:
            there, item = made.get()
            if not there:
                break
            room.release()
            yield item
    finally:
        stop()
        atexit.unregister(stop)
    if not isinstance(item, StopIteration):
        raise item


def describe_threads() -> str:
    """What was chosen, in words."""
    import torch

    waiting = "sleep while they wait" if threads_sleep() else "spin while they wait (slow beside other work)"
    number = torch.get_num_threads()
    words = f"{number} {'thread' if number == 1 else 'threads'} of {available_cores()} available cores"
    return words if number == 1 else f"{words}, which {waiting}"


__all__ = [
    "available_cores",
    "calm_number",
    "choose_threads",
    "describe_threads",
    "made_ahead",
    "sleep_while_waiting",
    "threads_sleep",
    "using_threads",
]
