"""Hinge adversarial losses, and the separation term.

Sources: Lim, Ye, Geometric GAN (arXiv 1705.02894); Défossez et al., EnCodec (arXiv 2210.13438), original repositories
facebookresearch/encodec and facebookresearch/audiocraft; the separation term is of LumenPallidium/audio_generation.
Everything is a mean over the discriminators and over positions, where `adversarial.py` sums over discriminators.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from melreformer_hf.training.losses.adversarial import check_pairs


def hinge_discriminator_loss(real_logits: Sequence[torch.Tensor], fake_logits: Sequence[torch.Tensor]) -> torch.Tensor:
    """Real above one, fake below minus one; scalar.

    Args:
        real_logits: per discriminator a tensor of any shape.
        fake_logits: the same; detach the waveform that they judge.

    Raises:
        ValueError: the numbers of discriminators differ, or there are none.
    """
    check_pairs(real_logits, fake_logits, "logits")
    terms = [
        (1 - real).relu().mean() + (1 + fake).relu().mean()
        for real, fake in zip(real_logits, fake_logits, strict=True)
    ]
    return torch.stack(terms).mean()


def hinge_generator_loss(fake_logits: Sequence[torch.Tensor], bounded: bool = False) -> torch.Tensor:
    """Fake upwards; scalar.

    Args:
        fake_logits: per discriminator a tensor of any shape.
        bounded: stop pulling where a logit is above one, instead of without end.

    Raises:
        ValueError: there are no discriminators.
    """
    if not fake_logits:
        raise ValueError("fake_logits must hold at least one tensor.")
    return torch.stack([(1 - fake).relu().mean() if bounded else -fake.mean() for fake in fake_logits]).mean()


def separation_term(
    real_logits: Sequence[torch.Tensor],
    fake_logits: Sequence[torch.Tensor],
    weight: float = 1e-3,
    offset: float = 0.0,
) -> torch.Tensor:
    """A price on discriminators that say the same of real and fake: sum of `weight / mean|real - fake + offset|`.

    It is for the discriminator's loss, rises without bound as the two become equal, and does not say which side is
    real. Logits are paired position by position.

    Args:
        real_logits: per discriminator a tensor of any shape.
        fake_logits: tensors of the same shapes.
        weight: of every discriminator's term.
        offset: keeps the term finite where the logits are equal everywhere.

    Raises:
        ValueError: the numbers of discriminators or their shapes differ, or there are none.
    """
    check_pairs(real_logits, fake_logits, "logits")
    terms = []
    for real, fake in zip(real_logits, fake_logits, strict=True):
        # Broadcasting would compare every position with every other.
        if real.shape != fake.shape:
            raise ValueError(
                f"separation_term pairs logits: shapes must be equal, got {tuple(real.shape)}, {tuple(fake.shape)}."
            )
        terms.append(weight / (real - fake + offset).abs().mean())
    return torch.stack(terms).sum()


__all__ = ["hinge_discriminator_loss", "hinge_generator_loss", "separation_term"]
