"""Least-squares adversarial losses and feature matching.

Source: Mao et al., Least squares GAN (arXiv 1611.04076), as in HiFi-GAN (arXiv 2010.05646): sums over the
sub-discriminators of means over positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def _check_lengths(first: Sequence, second: Sequence, what: str) -> None:
    if not first or len(first) != len(second):
        raise ValueError(
            f"{what} of real and fake must have one entry per discriminator, got {len(first)} and {len(second)}."
        )


def discriminator_loss(real_logits: Sequence[torch.Tensor], fake_logits: Sequence[torch.Tensor]) -> torch.Tensor:
    """Real towards one, fake towards zero; scalar."""
    _check_lengths(real_logits, fake_logits, "logits")
    terms = [
        (1 - real).square().mean() + fake.square().mean() for real, fake in zip(real_logits, fake_logits, strict=True)
    ]
    return torch.stack(terms).sum()


def generator_loss(fake_logits: Sequence[torch.Tensor]) -> torch.Tensor:
    """Fake towards one; scalar."""
    if not fake_logits:
        raise ValueError("fake_logits must hold at least one tensor.")
    return torch.stack([(1 - fake).square().mean() for fake in fake_logits]).sum()


def feature_matching_loss(
    real_maps: Sequence[Sequence[torch.Tensor]], fake_maps: Sequence[Sequence[torch.Tensor]]
) -> torch.Tensor:
    """Sum over discriminators and layers of the mean absolute difference; no gradient to the real side; scalar."""
    _check_lengths(real_maps, fake_maps, "feature maps")
    terms = [
        (real.detach() - fake).abs().mean()
        for real_layers, fake_layers in zip(real_maps, fake_maps, strict=True)
        for real, fake in zip(real_layers, fake_layers, strict=True)
    ]
    return torch.stack(terms).sum()


__all__ = ["discriminator_loss", "feature_matching_loss", "generator_loss"]
