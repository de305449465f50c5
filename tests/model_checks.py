"""A check of models that more than one family's tests make beside the contract."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from testing_utils import enable_checkpointing
from torch import nn


def assert_recomputing_changes_nothing(model: nn.Module, inputs: dict, loss: Callable[[object], torch.Tensor]) -> None:
    """With gradient checkpointing the gradients are those without, and the first block runs again in the backward."""
    recomputing = copy.deepcopy(model).train()
    enable_checkpointing(recomputing)
    blocks = [module for module in recomputing.modules() if getattr(module, "gradient_checkpointing", False)]
    runs = []
    inner = next(child for child in blocks[0].modules() if not list(child.children()))
    inner.register_forward_hook(lambda *_: runs.append(1))
    gradients = []
    for one in (model.train(), recomputing):
        torch.manual_seed(0)
        loss(one(**inputs)).backward()
        gradients.append({name: parameter.grad for name, parameter in one.named_parameters()})
    assert len(runs) > 1, "the first block's activations were kept"
    for name, expected in gradients[0].items():
        if expected is not None:
            torch.testing.assert_close(gradients[1][name], expected, rtol=1e-5, atol=1e-7, msg=name)
