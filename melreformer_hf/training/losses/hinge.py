"""Hinge adversarial losses, relative feature matching, and the separation term.

Sources: Lim, Ye, Geometric GAN (arXiv 1705.02894); Défossez et al., EnCodec (arXiv 2210.13438), original repositories
facebookresearch/encodec and facebookresearch/audiocraft; the separation term is of LumenPallidium/audio_generation.
Everything is a mean over the discriminators and over positions, where `adversarial.py` sums over discriminators.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def _check(first: Sequence, second: Sequence, what: str) -> None:
    if not first or len(first) != len(second):
        raise ValueError(
            f"{what} of real and fake must have one entry per discriminator, got {len(first)} and {len(second)}."
        )


def hinge_discriminator_loss(real_logits: Sequence[torch.Tensor], fake_logits: Sequence[torch.Tensor]) -> torch.Tensor:
    """Real above one, fake below minus one; scalar.

    Args:
        real_logits: per discriminator a tensor of any shape.
        fake_logits: the same; detach the waveform that they judge.

    Raises:
        ValueError: the numbers of discriminators differ, or there are none.
    """
    _check(real_logits, fake_logits, "logits")
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


def mean_feature_matching_loss(
    real_maps: Sequence[Sequence[torch.Tensor]],
    fake_maps: Sequence[Sequence[torch.Tensor]],
    relative: bool = False,
    offset: float = 0.0,
) -> torch.Tensor:
    """Mean over discriminators and layers of the mean absolute difference; no gradient to the real side; scalar.

    Args:
        real_maps: per discriminator the layers' outputs. EnCodec leaves the logit map out.
        fake_maps: the same.
        relative: divide each layer's difference by the mean magnitude of its real features.
        offset: added to the real features before that magnitude is taken.

    Raises:
        ValueError: the numbers of discriminators or layers differ, or there are none.
    """
    _check(real_maps, fake_maps, "feature maps")
    means = []
    for real_layers, fake_layers in zip(real_maps, fake_maps, strict=True):
        _check(real_layers, fake_layers, "layers")
        terms = []
        for real, fake in zip(real_layers, fake_layers, strict=True):
            difference = (real.detach() - fake).abs().mean()
            terms.append(difference / (real.detach() + offset).abs().mean() if relative else difference)
        means.append(torch.stack(terms).mean())
    return torch.stack(means).mean()


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
    _check(real_logits, fake_logits, "logits")
    terms = []
    for real, fake in zip(real_logits, fake_logits, strict=True):
        if real.shape != fake.shape:
            raise ValueError(
                f"separation_term pairs logits: shapes must be equal, got {tuple(real.shape)}, {tuple(fake.shape)}."
            )
        terms.append(weight / (real - fake + offset).abs().mean())
    return torch.stack(terms).sum()


__all__ = ["hinge_discriminator_loss", "hinge_generator_loss", "mean_feature_matching_loss", "separation_term"]
