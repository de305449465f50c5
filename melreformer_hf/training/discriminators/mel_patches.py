"""Patch discriminators of log-mels at several resolutions, told what the mel was made from."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import avg_pool2d

from melreformer_hf.training.discriminators.patch import PatchDiscriminator
from melreformer_hf.training.discriminators.stacks import DiscriminatorOutput

RESOLUTIONS = (1, 2, 4)
NUM_LAYERS = 2


class MelPatchDiscriminators(nn.Module):
    """One `PatchDiscriminator` per resolution; each sees the mel and its drawing, averaged over so many bins.

    Args:
        resolutions: bins along each axis that are averaged; 1 is the mel itself.
        base_channels: width of the first layers.
        num_layers: convolutions with stride 2 of each.

    Raises:
        ValueError: a number is not positive, or there is no resolution.
    """

    def __init__(
        self, resolutions: tuple[int, ...] = RESOLUTIONS, base_channels: int = 16, num_layers: int = NUM_LAYERS
    ) -> None:
        super().__init__()
        if not resolutions or min(resolutions) < 1:
            raise ValueError(f"resolutions must be positive and at least one, got {resolutions}.")
        self.resolutions = tuple(resolutions)
        self.discriminators = nn.ModuleList(PatchDiscriminator(2, base_channels, num_layers) for _ in self.resolutions)

    @staticmethod
    def smallest_picture() -> int:
        """Bands and frames that the coarsest of the default resolutions needs."""
        return max(RESOLUTIONS) * 3 * 2**NUM_LAYERS

    def forward(self, mels: torch.Tensor, drawings: torch.Tensor) -> DiscriminatorOutput:
        """Judge normalized log-mels.

        Args:
            mels: (batch, mel, frame).
            drawings: (batch, mel, frame) what the encoder drew for them.

        Returns:
            (logits, feature maps) as of `SideBySide`, one entry per resolution.

        Raises:
            ValueError: see `PatchDiscriminator`.
        """
        pictures = torch.stack([mels, drawings], dim=1)  # (batch, 2, mel, frame)
        logits, maps = [], []
        for resolution, discriminator in zip(self.resolutions, self.discriminators, strict=True):
            seen, features = discriminator(avg_pool2d(pictures, resolution))
            logits += seen
            maps += features
        return logits, maps


__all__ = ["MelPatchDiscriminators"]
