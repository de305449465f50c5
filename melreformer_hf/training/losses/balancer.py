"""Balances the gradients of several losses with respect to a model's output.

Source: Défossez et al., EnCodec (arXiv 2210.13438), original repository facebookresearch/audiocraft. Deviations: it is
handed back as a loss instead of being applied, so that gradient accumulation, mixed precision and clipping stay with the
training loop; its averages are saved with it; a loss may be absent at any step (the original breaks when a known loss
is missing); across processes gradient norms are averaged before the moving average.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import distributed, nn


class LossBalancer(nn.Module):
    """Scales each loss so that its gradient has a fixed share, whatever the loss's own size.

    The gradient of the losses' mixture with respect to `output` is the sum of `total_norm * weight / sum of weights *
    gradient / moving average of the gradient's norm`. The moving averages are buffers: save the module with the
    training.

    Args:
        weights: share of each loss by name, positive.
        balance_gradients: `False` gives the plain weighted sum of the losses.
        total_norm: sum of the norms of the mixture's parts.
        ema_decay: of the moving averages, bias-corrected.
        per_batch_item: take norms per batch item and average them; otherwise one norm over everything.
        epsilon: added to the averages before dividing.

    Raises:
        ValueError: no weights, a weight that is not positive, or a number out of range.

    Example:
        >>> import torch
        >>> from melreformer_hf.training.losses.balancer import LossBalancer
        >>> balancer = LossBalancer({"small": 1.0, "large": 1.0})
        >>> output = torch.zeros(1, 1, requires_grad=True)
        >>> loss = balancer({"small": (output - 1).abs().sum(), "large": 100 * (output + 1).abs().sum()}, output)
        >>> loss.backward()
        >>> float(output.grad)
        0.0
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        balance_gradients: bool = True,
        total_norm: float = 1.0,
        ema_decay: float = 0.999,
        per_batch_item: bool = True,
        epsilon: float = 1e-12,
    ) -> None:
        super().__init__()
        if not weights or any(weight <= 0 for weight in weights.values()):
            raise ValueError(f"weights must name at least one loss, all of them positive, got {dict(weights)}.")
        if total_norm <= 0 or not 0 <= ema_decay < 1 or epsilon < 0:
            raise ValueError(
                "total_norm must be positive, ema_decay in 0..1 without 1, epsilon not negative, got "
                f"{total_norm}, {ema_decay} and {epsilon}."
            )
        self.weights = dict(weights)
        self.balance_gradients, self.total_norm, self.ema_decay = balance_gradients, total_norm, ema_decay
        self.per_batch_item, self.epsilon = per_batch_item, epsilon
        # Double precision: a decay of 0.999 loses digits in single precision within a few thousand steps.
        self.register_buffer("norm_sums", torch.zeros(len(weights), dtype=torch.float64))
        self.register_buffer("norm_counts", torch.zeros(len(weights), dtype=torch.float64))
        self.shares: dict[str, float] = {}

    def _apply(self, fn, recurse: bool = True):
        # The averages stay in double precision when a whole model is cast.
        sums, counts = self.norm_sums, self.norm_counts
        super()._apply(fn, recurse)
        self.norm_sums = sums.to(self.norm_sums.device)
        self.norm_counts = counts.to(self.norm_counts.device)
        return self

    def _gradients(self, losses: Mapping[str, torch.Tensor], output: torch.Tensor) -> list[torch.Tensor]:
        gradients = []
        for name, loss in losses.items():
            (gradient,) = torch.autograd.grad(loss, output, retain_graph=True, allow_unused=True)
            if gradient is None:
                raise ValueError(f"The loss {name!r} does not depend on the output that it is balanced at.")
            gradients.append(gradient)
        return gradients

    def _averages(self, names: list[str], gradients: list[torch.Tensor]) -> torch.Tensor:
        axes = tuple(range(1, gradients[0].ndim)) if self.per_batch_item else None
        norms = torch.stack([torch.linalg.vector_norm(gradient.float(), dim=axes).mean() for gradient in gradients])
        norms = norms.double()
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(norms)
            norms = norms / distributed.get_world_size()
        order = list(self.weights)
        index = torch.tensor([order.index(name) for name in names], device=self.norm_sums.device)
        self.norm_sums[index] = self.norm_sums[index] * self.ema_decay + norms.to(self.norm_sums.device)
        self.norm_counts[index] = self.norm_counts[index] * self.ema_decay + 1.0
        return self.norm_sums[index] / self.norm_counts[index]

    def forward(self, losses: Mapping[str, torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        """The balanced loss.

        Args:
            losses: scalars by name, any of those that `weights` names.
            output: (batch, ...) the model's output that all of them were computed from, with its graph.

        Returns:
            scalar: its value is the sum of the scaled losses; its gradient reaches the model through `output` alone.
            `shares` then holds each loss's part of the gradient norms before balancing.

        Raises:
            ValueError: no losses, one without a weight, or one that does not depend on `output`.
        """
        unknown = [name for name in losses if name not in self.weights]
        if unknown or not losses:
            raise ValueError(f"losses must be some of {sorted(self.weights)}, got {sorted(losses)}.")
        names, gradients = list(losses), self._gradients(losses, output)
        averages = self._averages(names, gradients).tolist()
        total = sum(averages)
        self.shares = {name: average / max(total, self.epsilon) for name, average in zip(names, averages, strict=True)}
        wanted = sum(self.weights[name] for name in names)
        mixed, value = torch.zeros_like(output), torch.zeros((), dtype=output.dtype, device=output.device)
        for name, gradient, average in zip(names, gradients, averages, strict=True):
            scale = self.weights[name]
            if self.balance_gradients:
                scale = scale / wanted * self.total_norm / (self.epsilon + average)
            mixed = mixed + scale * gradient
            value = value + scale * losses[name].detach()
        carrier = (output * mixed.detach()).sum()
        return carrier + (value - carrier).detach()


def adaptive_weight(
    reconstruction: torch.Tensor,
    adversarial: torch.Tensor,
    last_weight: torch.Tensor,
    factor: float = 0.8,
    least: float = 0.0,
    most: float = 1.0,
) -> torch.Tensor:
    """Weight of an adversarial loss that makes its gradient as large as the reconstruction's at a decoder's last layer.

    Source: Esser, Rombach, Ommer, Taming Transformers (arXiv 2012.09841); the bounds are those of
    karchkha/MelSpec_VQVAE.

    Args:
        reconstruction: scalar.
        adversarial: scalar.
        last_weight: weight of the decoder's last layer, in the graph of both losses.
        factor: of the result.
        least: lower bound of the quotient.
        most: upper bound of the quotient.

    Returns:
        scalar without a gradient.
    """
    (wanted,) = torch.autograd.grad(reconstruction, last_weight, retain_graph=True)
    (given,) = torch.autograd.grad(adversarial, last_weight, retain_graph=True)
    return factor * (wanted.norm() / (given.norm() + 1e-4)).clamp(least, most).detach()


__all__ = ["LossBalancer", "adaptive_weight"]
