"""Validation that leaves no trace in the training: its own random numbers, no gradients, the averaged weights."""

from __future__ import annotations

import torch
from torch import nn

from melreformer_hf.training.recipes.base import Recipe, Validation


def run_validation(recipe: Recipe, model: nn.Module, seed: int) -> Validation:
    """Run `recipe.validate` under a fixed seed and give the training its generators back.

    Args:
        recipe: knows how; outside a training its `modules` may be empty.
        model: what is measured, whole and unwrapped.
        seed: of everything random.

    Raises:
        ValueError: the recipe did not report its own `best_metric`.
    """
    # Sampling draws on the device too.
    devices = [parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"][:1]
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        torch.manual_seed(seed)
        result = recipe.validate(model.eval())
    if recipe.best_metric not in result.metrics:
        raise ValueError(
            f"The {recipe.name} recipe's validation must report {recipe.best_metric!r}, got {sorted(result.metrics)}."
        )
    return result


__all__ = ["run_validation"]
