"""Optimizer and learning-rate schedule."""

from __future__ import annotations

import math

import torch
from torch import nn

from melreformer_hf.training.config import TrainingConfig


def build_optimizer(module: nn.Module, learning_rate: float, config: TrainingConfig) -> torch.optim.Optimizer:
    """AdamW over the trainable parameters; only weights with two axes or more decay."""
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not trainable:
        raise ValueError(f"{type(module).__name__} has no trainable parameter.")
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [{**group, "peak": learning_rate} for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=config.adam_betas, eps=config.adam_epsilon, fused=True)


def learning_rate_factor(step: int, progress: float, config: TrainingConfig) -> float:
    """Share of the peak learning rate: linear warm-up over steps, then half a cosine over the whole training.

    Args:
        step: optimizer steps done.
        progress: share of the training that is done, 0..1, in steps or in minutes, whichever ends it first.
        config: `warmup_steps`, `final_learning_rate_ratio`.
    """
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    floor = config.final_learning_rate_ratio
    return warmup * (floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress))))


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's rate to `factor` times its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor


__all__ = ["build_optimizer", "learning_rate_factor", "set_learning_rate"]
