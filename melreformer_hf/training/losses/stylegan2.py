"""Losses of StyleGAN2: non-saturating, R1, path lengths.

Source: Goodfellow et al. (arXiv 1406.2661); Mescheder et al. (R1, arXiv 1801.04406); Karras et al. (path lengths,
arXiv 1912.04958). The two penalties are meant to be taken every few steps and multiplied by their number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn.functional import softplus


def logistic_discriminator_loss(real_logits: torch.Tensor, fake_logits: torch.Tensor) -> torch.Tensor:
    """Real towards plus, fake towards minus infinity; scalar, the mean over the batch of either."""
    return softplus(-real_logits).mean() + softplus(fake_logits).mean()


def nonsaturating_generator_loss(fake_logits: torch.Tensor) -> torch.Tensor:
    """Fake towards plus infinity, with a gradient that stays where the discriminator is sure; scalar."""
    return softplus(-fake_logits).mean()


def _wide(values: torch.Tensor) -> torch.Tensor:
    """Float32 at least: sums of squares lose too much in half precision."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def r1_penalty(real_logits: torch.Tensor, inputs: torch.Tensor | Sequence[torch.Tensor]) -> torch.Tensor:
    """Squared norm of the discriminator's gradient at real inputs, averaged over the batch.

    Args:
        real_logits: (batch, 1) or (batch,) logits of `inputs`.
        inputs: what they were computed from, with `requires_grad`: pictures, or pictures and durations. A
            discriminator that is told durations needs both, else it may become arbitrarily sharp in the duration.

    Returns:
        scalar, without a weight (a loss takes half gamma times it).

    Raises:
        ValueError: an input has another batch size.
    """
    inputs = [inputs] if isinstance(inputs, torch.Tensor) else list(inputs)
    batch = real_logits.shape[0]
    for index, tensor in enumerate(inputs):
        if tensor.shape[0] != batch:
            raise ValueError(f"inputs[{index}] must have a batch of {batch}, as real_logits, got {tensor.shape[0]}.")
    # rows do not mix: the sum gives each its own
    gradients = torch.autograd.grad(real_logits.sum(), inputs, create_graph=True)
    return torch.stack([_wide(gradient).square().sum() for gradient in gradients]).sum() / batch


def path_lengths(pictures: torch.Tensor, styles: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
    """How much pictures change with their styles, in a random direction of picture space.

    Args:
        pictures: (batch, channel, row, column) made from `styles`.
        styles: (batch, num_styles, style_size), part of the pictures' graph (`IdeaStyleGan2Output.styles`).
        noise: standard normal of the pictures' shape; drawn if absent.

    Returns:
        (batch,), differentiable.

    Raises:
        ValueError: the noise has another shape.
    """
    noise = torch.randn_like(pictures) if noise is None else noise
    if noise.shape != pictures.shape:
        raise ValueError(f"noise must have the pictures' shape {tuple(pictures.shape)}, got {tuple(noise.shape)}.")
    rows, columns = pictures.shape[-2:]
    # The product with a random picture y gives J^T y by one backward pass, without the Jacobian J.
    projected = (pictures * noise).sum() / math.sqrt(rows * columns)
    (gradient,) = torch.autograd.grad(projected, styles, create_graph=True)
    return _wide(gradient).square().sum(2).mean(1).sqrt()  # over (batch, style, size): |J^T y| of eq. 4


def path_length_penalty(
    lengths: torch.Tensor, mean: torch.Tensor | float, decay: float = 0.01
) -> tuple[torch.Tensor, torch.Tensor]:
    """Squared distance of path lengths from their running mean.

    Args:
        lengths: (batch,) of `path_lengths`.
        mean: the running mean so far; begin with 0.
        decay: how fast the running mean follows.

    Returns:
        (penalty, new running mean), scalars; the mean is detached.
    """
    mean = mean + decay * (lengths.mean() - mean)  # follows before it is compared, as in the original
    return (lengths - mean).square().mean(), mean.detach()


__all__ = [
    "logistic_discriminator_loss",
    "nonsaturating_generator_loss",
    "path_length_penalty",
    "path_lengths",
    "r1_penalty",
]
