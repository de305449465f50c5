"""Exponential moving average of weights: the model that is validated, saved and shipped."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from melreformer_hf.training.wrapping import copy_like, whole


class WeightAverage:
    """A second copy of a model whose weights follow the trained ones slowly.

    The decay grows with the number of updates, `min(decay, (1 + n) / (10 + n))`, so that the first validations do not
    see the initial weights (the rule of TensorFlow's ExponentialMovingAverage).

    Args:
        model: the model before it is wrapped or sharded; copied.
        decay: final averaging factor; 0 follows exactly.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        # Unless the module is sharded these are the eval model's own weights: no second copy.
        self._averages = list(self.model.parameters())

    @torch.no_grad()
    def follow(self, module: nn.Module) -> None:
        """Tell how the trained module is laid out: averages of a sharded one are kept in shards, as cheap as its own."""
        parameters = list(module.parameters())
        if any(isinstance(parameter, DTensor) for parameter in parameters):
            self._averages = [parameter.detach().clone() for parameter in parameters]

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Follow the trained module after its optimizer step number `step` (counted from 1)."""
        keep = min(self.decay, (1 + step) / (10 + step))
        theirs = [parameter.detach() for parameter in module.parameters()]
        # One call for all tensors: hundreds of small kernels would cost more than the sums.
        torch._foreach_lerp_(self._averages, theirs, 1.0 - keep)
        # Buffers (statistics, codebooks) are averages already, or counters: copied.
        for own, other in zip(self.model.buffers(), module.buffers(), strict=True):
            own.copy_(other)

    @torch.no_grad()
    def gathered(self) -> nn.Module:
        """The averaged model, whole and ready to run; every process calls."""
        for own, average in zip(self.model.parameters(), self._averages, strict=True):
            if average is not own:
                own.copy_(whole(average))
        return self.model

    def weights(self) -> dict[str, torch.Tensor]:
        """Whole weights of the averaged model, for a checkpoint; every process calls."""
        return self.gathered().state_dict()

    @torch.no_grad()
    def load_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        """The inverse of `weights`."""
        self.model.load_state_dict(weights)
        for own, average in zip(self.model.parameters(), self._averages, strict=True):
            if average is not own:
                copy_like(average, own)


__all__ = ["WeightAverage"]
