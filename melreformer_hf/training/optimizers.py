"""Optimizers and learning-rate schedule."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from melreformer_hf.training.config import OPTIMIZERS, TrainingConfig

# Odd polynomial whose repetition moves every singular value near 1 (Jordan et al., Muon).
_POLYNOMIAL = (3.4445, -4.7750, 2.0315)
_SMALLEST_MATRIX = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """How one module is trained; `None` takes what the training's own settings say.

    Args:
        kind: adamw or muon.
        learning_rate: peak.
        betas: AdamW's averaging factors.
        epsilon: AdamW's.
        weight_decay: of weights with two axes or more.
        max_grad_norm: gradients are scaled down to this norm.

    Raises:
        ValueError: a value breaks its rule.
    """

    kind: str | None = None
    learning_rate: float | None = None
    betas: tuple[float, float] | None = None
    epsilon: float | None = None
    weight_decay: float | None = None
    max_grad_norm: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in (None, *OPTIMIZERS):
            raise ValueError(f"kind must be one of {OPTIMIZERS}, got {self.kind!r}.")
        for name in ("learning_rate", "epsilon", "max_grad_norm"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
        if self.weight_decay is not None and self.weight_decay < 0:
            raise ValueError(f"weight_decay must not be negative, got {self.weight_decay}.")
        if self.betas is not None and (len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas)):
            raise ValueError(f"betas must be two numbers in [0, 1), got {self.betas}.")

    def completed(self, config: TrainingConfig) -> OptimizerSettings:
        """The same with what is absent taken from a training's settings."""
        defaults = {
            "kind": config.optimizer,
            "learning_rate": config.learning_rate,
            "betas": config.adam_betas,
            "epsilon": config.adam_epsilon,
            "weight_decay": config.weight_decay,
            "max_grad_norm": config.max_grad_norm,
        }
        missing = {name: value for name, value in defaults.items() if getattr(self, name) is None}
        return dataclasses.replace(self, **missing)


def orthogonalize(matrix: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Nearly the orthogonal factor of a matrix, by Newton-Schulz steps: singular values go to about 0.7..1.2.

    Args:
        matrix: (row, column).
        steps: repetitions.

    Returns:
        (row, column), the same dtype.
    """
    a, b, c = _POLYNOMIAL
    wide = matrix.bfloat16() if matrix.numel() > 65536 else matrix.float()
    # The smaller Gram matrix.
    flipped = wide.shape[0] > wide.shape[1]
    wide = wide.T if flipped else wide
    # The Frobenius norm bounds the largest singular value: it is at most one afterwards.
    wide = wide / (wide.norm() + 1e-7)
    for _ in range(steps):
        gram = wide @ wide.T
        # One Newton-Schulz step: singular values s become a s + b s^3 + c s^5.
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    return (wide.T if flipped else wide).to(matrix.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum whose update of every hidden matrix is orthogonalized; AdamW for all other parameters.

    Source: Jordan et al., Muon (2024), with the scale of Liu et al. (arXiv 2502.16982), by which updates of matrices
    have the size of AdamW's, so that one learning rate serves both. Convolutions are matrices of (output, rest).

    Args:
        groups: parameter groups; `orthogonal` in a group chooses the rule, `weight_decay` as in AdamW.
        lr: learning rate of groups without one.
        momentum: averaging factor of the gradients (orthogonal groups).
        betas: AdamW's averaging factors (other groups).
        eps: AdamW's epsilon.
    """

    def __init__(
        self,
        groups: Iterable[dict],
        lr: float = 1e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "betas": betas, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], torch.Tensor] | None = None) -> torch.Tensor | None:
        """One update of all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            rule = self._orthogonal_step if group["orthogonal"] else self._adam_step
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    rule(parameter, self.state[parameter], group)
        return loss

    @staticmethod
    def _orthogonal_step(parameter: torch.Tensor, state: dict, group: dict) -> None:
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        gradient, factor = parameter.grad, group["momentum"]
        state["momentum"].lerp_(gradient, 1 - factor)
        direction = gradient.lerp(state["momentum"], factor)
        # Singular values belong to the whole matrix: a sharded one is gathered, and each process keeps its part.
        whole = direction.full_tensor() if isinstance(direction, DTensor) else direction
        update = orthogonalize(whole.flatten(1))  # (output, rest)
        scale = 0.2 * math.sqrt(max(update.shape))  # arXiv 2502.16982: updates as large as AdamW's
        update = update.view_as(whole)
        if isinstance(direction, DTensor):
            update = distribute_tensor(update, direction.device_mesh, direction.placements)
        parameter.add_(update, alpha=-group["lr"] * scale)

    @staticmethod
    def _adam_step(parameter: torch.Tensor, state: dict, group: dict) -> None:
        if not state:
            state["step"] = torch.zeros(())
            state["mean"], state["square"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        first, second = group["betas"]
        state["step"] += 1
        step = state["step"].item()
        state["mean"].lerp_(parameter.grad, 1 - first)
        state["square"].mul_(second).addcmul_(parameter.grad, parameter.grad, value=1 - second)
        # Bias corrections of Adam (arXiv 1412.6980, algorithm 1).
        scale = (state["square"] / (1 - second**step)).sqrt_().add_(group["eps"])
        parameter.addcdiv_(state["mean"], scale, value=-group["lr"] / (1 - first**step))


def _hidden_matrices(module: nn.Module) -> set[int]:
    # Weights of layers that mix many inputs into many outputs; stems, heads and tables of few rows are left to AdamW.
    chosen = set()
    for layer in module.modules():
        weight = getattr(layer, "weight", None)
        if not isinstance(weight, torch.Tensor) or isinstance(layer, nn.Embedding) or weight.ndim < 2:
            continue
        if min(weight.shape[0], weight.numel() // max(weight.shape[0], 1)) >= _SMALLEST_MATRIX:
            chosen.add(id(weight))
    return chosen


def build_optimizer(module: nn.Module, settings: OptimizerSettings) -> torch.optim.Optimizer:
    """The optimizer of a module's trainable parameters; only weights with two axes or more decay.

    Args:
        module: what is trained.
        settings: complete ones, see `OptimizerSettings.completed`.

    Raises:
        ValueError: nothing is trainable.
    """
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not trainable:
        raise ValueError(f"{type(module).__name__} has no trainable parameter.")
    chosen = _hidden_matrices(module) if settings.kind == "muon" else set()
    matrices = [p for p in trainable if p.ndim >= 2]
    decay = settings.weight_decay
    groups = [
        {"params": [p for p in matrices if id(p) in chosen], "weight_decay": decay, "orthogonal": True},
        {"params": [p for p in matrices if id(p) not in chosen], "weight_decay": decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    rate = settings.learning_rate
    groups = [
        {"orthogonal": False, **group, "peak": rate, "kind": settings.kind} for group in groups if group["params"]
    ]
    if settings.kind == "muon":
        return Muon(groups, rate, betas=settings.betas, eps=settings.epsilon)
    return torch.optim.AdamW(groups, lr=rate, betas=settings.betas, eps=settings.epsilon, fused=True)


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


__all__ = [
    "Muon",
    "OptimizerSettings",
    "build_optimizer",
    "learning_rate_factor",
    "orthogonalize",
    "set_learning_rate",
]
