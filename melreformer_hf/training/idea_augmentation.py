"""Changes of ideas that a discriminator shall not learn by heart: louder, shifted, stretched, without some bands.

The same kinds of change are made to real and generated ideas before they are judged, with gradients (Zhao et al., DiffAugment,
arXiv 2006.10738; Karras et al., ADA, arXiv 2006.06676: at a share below one they do not leak into what is generated).
Pictures have no color or rotation here: a change is one that a recording could have.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch.nn.functional import grid_sample


@dataclasses.dataclass(frozen=True, kw_only=True)
class IdeaAugmentation:
    """How ideas are changed.

    Args:
        share: of the ideas that undergo each kind of change; 0 changes nothing.
        gain: largest change of all values, in units of the pictures.
        stretch: largest factor of the pace, and its inverse the smallest; at least 1.
        shift: largest shift in time, as a share of the width; what comes in from outside is the mirrored inside.
        drop: largest share of the bands that are set to the picture's mean, side by side.

    Raises:
        ValueError: a value breaks its rule.
    """

    share: float = 0.3
    gain: float = 0.5
    stretch: float = 1.25
    shift: float = 0.25
    drop: float = 0.15

    def __post_init__(self) -> None:
        for name in ("share", "shift", "drop"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"augmentation {name} must be in [0, 1], got {getattr(self, name)}.")
        if not (math.isfinite(self.gain) and self.gain >= 0):
            raise ValueError(f"augmentation gain must not be negative, got {self.gain}.")
        if not (math.isfinite(self.stretch) and self.stretch >= 1):
            raise ValueError(f"augmentation stretch must be at least 1, got {self.stretch}.")

    def _drawn(self, batch: int, device: torch.device) -> torch.Tensor:
        """(batch, 1) numbers in -1..1, zero where a picture keeps what it has."""
        draws, chosen = torch.rand(2, batch, 1, device=device)
        return (2 * draws - 1) * (chosen < self.share)

    def __call__(
        self, pictures: torch.Tensor, log2_num_frames: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Change pictures, drawing from torch's global generator.

        Args:
            pictures: (batch, 1, band, column).
            log2_num_frames: (batch,) durations; stretched music is so much longer. `None`: there are none.

        Returns:
            both, changed.
        """
        if not self.share:
            return pictures, log2_num_frames
        batch, _, bands, columns = pictures.shape
        device = pictures.device
        octaves = self._drawn(batch, device) * math.log2(self.stretch)
        # Column c shows what was at c / factor: music at a slower pace, of which less fits.
        place = torch.linspace(-1, 1, columns, device=device)
        across = place * torch.exp2(-octaves) + 2 * self.shift * self._drawn(batch, device)
        down = torch.linspace(-1, 1, bands, device=device)[None, :, None].expand(batch, -1, columns)
        grid = torch.stack([across[:, None].expand(-1, bands, -1), down], dim=-1)  # (batch, band, column, xy)
        changed = grid_sample(
            pictures, grid.to(pictures.dtype), padding_mode="reflection", align_corners=True, mode="bilinear"
        )
        changed = changed + (self.gain * self._drawn(batch, device))[..., None, None]
        changed = self._without_bands(changed)
        # The picture stands for the part that is left of a piece whose length does not change.
        return changed, None if log2_num_frames is None else log2_num_frames - octaves[:, 0]

    def _without_bands(self, pictures: torch.Tensor) -> torch.Tensor:
        batch, _, bands, _ = pictures.shape
        wide = self._drawn(batch, pictures.device).abs() * self.drop * bands
        first = torch.rand(batch, 1, device=pictures.device) * bands
        band = torch.arange(bands, device=pictures.device)
        gone = ((band >= first) & (band < first + wide))[:, None, :, None]
        return torch.where(gone, pictures.mean((2, 3), keepdim=True), pictures)


__all__ = ["IdeaAugmentation"]
