"""Least-squares adversarial losses, and feature matching.

Sources: Mao et al., Least squares GAN (arXiv 1611.04076), as in HiFi-GAN (arXiv 2010.05646): sums over the
sub-discriminators of means over positions; feature matching of Kumar et al., MelGAN (arXiv 1910.06711), and in its
relative form of Défossez et al., EnCodec (arXiv 2210.13438).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def check_pairs(real: Sequence, fake: Sequence, what: str) -> None:
    """Refuse lists of different lengths, or of none.

    Raises:
        ValueError: names what was paired and both lengths.
    """
    if not real or len(real) != len(fake):
        raise ValueError(
            f"{what} of real and fake must have one entry per discriminator, got {len(real)} and {len(fake)}."
        )


def discriminator_loss(real_logits: Sequence[torch.Tensor], fake_logits: Sequence[torch.Tensor]) -> torch.Tensor:
    """Real towards one, fake towards zero; scalar."""
    check_pairs(real_logits, fake_logits, "logits")
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
    real_maps: Sequence[Sequence[torch.Tensor]],
    fake_maps: Sequence[Sequence[torch.Tensor]],
    *,
    reduction: str = "sum",
    relative: bool = False,
    offset: float = 0.0,
) -> torch.Tensor:
    """Mean absolute differences of the layers of discriminators; no gradient to the real side; scalar.

    Args:
        real_maps: per discriminator the layers' outputs. EnCodec leaves the logit map out.
        fake_maps: the same.
        reduction: `sum` over discriminators and layers as in HiFi-GAN, or `mean` over the layers of each discriminator and
            then over discriminators as in EnCodec.
        relative: divide each layer's difference by the mean magnitude of its real features.
        offset: added to the real features before that magnitude is taken.

    Raises:
        ValueError: the numbers of discriminators or layers differ, there are none, or an unknown reduction.
    """
    if reduction not in ("sum", "mean"):
        raise ValueError(f"reduction must be 'sum' or 'mean', got {reduction!r}.")
    check_pairs(real_maps, fake_maps, "feature maps")
    per_discriminator = []
    for real_layers, fake_layers in zip(real_maps, fake_maps, strict=True):
        check_pairs(real_layers, fake_layers, "layers")
        terms = []
        for real, fake in zip(real_layers, fake_layers, strict=True):
            difference = (real.detach() - fake).abs().mean()  # the real side teaches, it is not taught
            terms.append(difference / (real.detach() + offset).abs().mean() if relative else difference)
        per_discriminator.append(torch.stack(terms))
    if reduction == "sum":
        # HiFi-GAN: discriminators with more layers weigh more.
        return torch.cat(per_discriminator).sum()
    # EnCodec: each discriminator weighs the same.
    return torch.stack([terms.mean() for terms in per_discriminator]).mean()


__all__ = ["check_pairs", "discriminator_loss", "feature_matching_loss", "generator_loss"]
