"""What Gradio leaves open is collected before other tests come."""

from __future__ import annotations

import gc
import warnings

import pytest


@pytest.fixture(scope="module", autouse=True)
def nothing_left_behind():
    """Event loops and sockets of servers and clients would otherwise be collected, and complain, in any later test."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        for _ in range(3):  # what one pass ends may hold what the next one finds
            gc.collect()
