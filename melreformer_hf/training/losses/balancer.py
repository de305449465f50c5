"""Balances the gradients of several losses with respect to a model's output.

Source: Défossez et al., EnCodec (arXiv 2210.13438), original repository facebookresearch/audiocraft. Deviations: it is
handed back as a loss instead of being applied, so that gradient accumulation, mixed precision and clipping stay with the
training loop; its averages are saved with it; a loss may be absent at any step (the original breaks when a known loss
is missing); norms are those of the gradient over the whole batch of a step, however it is divided into processes and
micro batches (the original's mixture shrinks with the number of processes).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import distributed, nn


class LossBalancer(nn.Module):
    """Scales each loss so that its gradient has a fixed share, whatever the loss's own size.

    The gradient of the losses' mixture with respect to `output` is the sum of `total_norm * weight / sum of weights *
    gradient / moving average of the gradient's norm`. The moving averages are buffers: a recipe names the balancer among
    its `stateful`. Losses are means over the batch.

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
        self._shares: tuple[list[str], torch.Tensor] = ([], torch.zeros(0))

    def _apply(self, fn, recurse: bool = True):
        # The averages stay in double precision when a whole model is cast, where the device has it.
        sums, counts = self.norm_sums, self.norm_counts
        self.norm_sums, self.norm_counts = sums.float(), counts.float()  # a device without it refuses to take them
        super()._apply(fn, recurse)
        device = self.norm_sums.device
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self.norm_sums, self.norm_counts = sums.to(device, dtype), counts.to(device, dtype)
        return self

    @property
    def shares(self) -> dict[str, float]:
        """Each loss's part of the gradient norms before balancing, of the last call; moved to the host when it is asked."""
        names, averages = self._shares
        return dict(zip(names, (averages / averages.sum().clamp(min=self.epsilon)).tolist(), strict=True))

    def _gradients(self, losses: Mapping[str, torch.Tensor], output: torch.Tensor) -> list[torch.Tensor]:
        gradients = []
        for name, loss in losses.items():
            (gradient,) = torch.autograd.grad(loss, output, retain_graph=True, allow_unused=True)
            if gradient is None:
                raise ValueError(f"The loss {name!r} does not depend on the output that it is balanced at.")
            gradients.append(gradient)
        return gradients

    def _norms(self, gradients: list[torch.Tensor], micro_steps: int) -> torch.Tensor:
        """Norms of the gradients of the whole batch's mean losses, (loss,)."""
        axes = tuple(range(1, gradients[0].ndim)) if self.per_batch_item else None
        norms = torch.stack([torch.linalg.vector_norm(gradient.float(), dim=axes) for gradient in gradients])
        norms = norms.to(self.norm_sums)  # (loss, item) or (loss,)
        # With W processes an item's part of a mean over its own process's items is W times its part of the whole mean;
        # micro batches likewise. Per item the norms are averaged, otherwise squares add up over the processes.
        values = norms.mean(-1) if self.per_batch_item else norms.square()
        processes = distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
        if processes > 1:
            distributed.all_reduce(values)
        values = values / processes if self.per_batch_item else values.sqrt()
        return values / (processes * micro_steps)

    def _averages(self, names: list[str], norms: torch.Tensor) -> torch.Tensor:
        order = list(self.weights)
        index = torch.tensor([order.index(name) for name in names], device=self.norm_sums.device)
        self.norm_sums[index] = self.norm_sums[index] * self.ema_decay + norms
        self.norm_counts[index] = self.norm_counts[index] * self.ema_decay + 1.0  # bias correction
        return self.norm_sums[index] / self.norm_counts[index]

    def forward(self, losses: Mapping[str, torch.Tensor], output: torch.Tensor, micro_steps: int = 1) -> torch.Tensor:
        """The balanced loss.

        Args:
            losses: scalars by name, any of those that `weights` names.
            output: (batch, ...) the model's output that all of them were computed from, with its graph.
            micro_steps: batches whose gradients are accumulated (`StepContext.num_micro_steps`).

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
        averages = self._averages(names, self._norms(gradients, micro_steps))
        self._shares = (names, averages)
        weights = torch.tensor([self.weights[name] for name in names]).to(averages)
        scales = weights
        if self.balance_gradients:
            scales = weights / weights.sum() * self.total_norm / (self.epsilon + averages)
        mixed, value = torch.zeros_like(output), torch.zeros((), dtype=output.dtype, device=output.device)
        for name, gradient, scale in zip(names, gradients, scales.to(output.dtype).unbind(), strict=True):
            mixed = mixed + scale * gradient
            value = value + scale * losses[name].detach()
        # Its derivative by `output` is `mixed`, its value is `value`.
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
