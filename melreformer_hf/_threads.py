"""CPU threads that do not collapse beside other work.

Idle OpenMP threads spin, by default, while they wait for one another. When other programs use the cores, a thread that
is not running makes all others spin for it, and two threads are many times slower than one. Sleeping in place of
spinning (OMP_WAIT_POLICY=PASSIVE) cures it, but the variable is read once, when torch loads its OpenMP runtime: programs
set it before they import torch, and a library that comes too late uses fewer threads while the machine is busy.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

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
    "sleep_while_waiting",
    "threads_sleep",
    "using_threads",
]
