"""Statistics over all processes of torch.distributed; without processes nothing is done."""

from __future__ import annotations

import torch
from torch import distributed


def is_distributed() -> bool:
    """Whether several processes work together."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def sum_over_processes(*tensors: torch.Tensor) -> None:
    """Replace every tensor by its sum over all processes."""
    if is_distributed():
        for tensor in tensors:
            distributed.all_reduce(tensor)


def share_from_first_process(*tensors: torch.Tensor) -> None:
    """Replace every tensor by the first process's."""
    if is_distributed():
        for tensor in tensors:
            distributed.broadcast(tensor, src=0)


__all__ = ["is_distributed", "share_from_first_process", "sum_over_processes"]
