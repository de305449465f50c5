"""Exponential moving average of weights: the model that is validated, saved and shipped."""

from __future__ import annotations

import copy

import torch
from torch import nn


class WeightAverage:
    """A second copy of a model whose weights follow the trained ones slowly.

    The decay grows with the number of updates, `min(decay, (1 + n) / (10 + n))`, so that the first validations do not
    see the initial weights (the rule of TensorFlow's ExponentialMovingAverage).

    Args:
        model: the model to follow; copied.
        decay: final averaging factor; 0 follows exactly.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Follow `model` after its optimizer step number `step` (counted from 1)."""
        keep = min(self.decay, (1 + step) / (10 + step))
        mine, theirs = list(self.model.parameters()), [p.detach() for p in model.parameters()]
        torch._foreach_lerp_(mine, theirs, 1.0 - keep)
        for own, other in zip(self.model.buffers(), model.buffers(), strict=True):
            own.copy_(other)


__all__ = ["WeightAverage"]
