"""States of streams in exported programs."""

from __future__ import annotations

import warnings

import torch


def register_state(kind: type) -> type:
    """A class decorator: steps that take and return the dataclass can be exported (`torch.export`).

    Args:
        kind: the dataclass that a step of a stream remembers.
    """
    with warnings.catch_warnings():
        # torch 2.6 warns of a deprecated function that it calls itself.
        warnings.filterwarnings("ignore", ".*_register_pytree_node", FutureWarning)
        torch.export.register_dataclass(kind)
    return kind


__all__ = ["register_state"]
