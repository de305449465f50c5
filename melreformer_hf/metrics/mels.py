"""Properties of log-mels that an L1 distance does not see: blur, seams between windows, drift, statistics.

Mels are given as one (mel, frame) tensor, a batch (batch, mel, frame), or a sequence of (mel, frame) tensors of
different lengths.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from melreformer_hf.audio.mel import MelConfig

Mels = torch.Tensor | Sequence[torch.Tensor]
AXES = {"time": -1, "frequency": -2}


def _rows(mels: Mels, name: str) -> list[torch.Tensor]:
    rows = [mels] if isinstance(mels, torch.Tensor) and mels.ndim == 2 else list(mels)
    if not rows or any(row.ndim != 2 for row in rows):
        raise ValueError(
            f"{name} must be log-mels of shape (mel, frame), at least one, got {[tuple(row.shape) for row in rows]}."
        )
    return [row.float() for row in rows]


def _pairs(prediction: Mels, target: Mels) -> list[tuple[torch.Tensor, torch.Tensor]]:
    ours, theirs = _rows(prediction, "prediction"), _rows(target, "target")
    shapes = [[tuple(row.shape) for row in rows] for rows in (ours, theirs)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"prediction and target must have the same shapes, got {shapes[0]} and {shapes[1]}.")
    return list(zip(ours, theirs, strict=True))


def audible_bins(mel: torch.Tensor, config: MelConfig, range_db: float = 60.0) -> torch.Tensor:
    """Which bins are within `range_db` decibels of the piece's loudest one.

    Args:
        mel: (mel, frame) log-mel of one piece.
        config: its contract; says what a decibel is in units of the log-mel.
        range_db: positive.

    Returns:
        (mel, frame) bool.
    """
    if not range_db > 0:
        raise ValueError(f"range_db must be above 0, got {range_db}.")
    # 20 dB are a factor of 10 in magnitude (power 1) and of 100 in power (power 2).
    decades = range_db / 20 * config.power
    units = config.log_multiplier * decades * (math.log(10) if config.log_base == "e" else 1.0)
    return mel >= mel.max() - units


def _change_energy(mel: torch.Tensor, axis: str, audible: torch.Tensor | None) -> torch.Tensor:
    """Mean squared difference of neighboring bins; of those pairs only of which both are audible."""
    dim = AXES[axis]
    change = mel.diff(dim=dim).square()
    if audible is None:
        return change.mean()
    size = audible.shape[dim] - 1
    both = audible.narrow(dim, 0, size) & audible.narrow(dim, 1, size)
    return (change * both).sum() / both.sum().clamp(min=1)


def sharpness(
    prediction: Mels,
    target: Mels,
    config: MelConfig | None = None,
    *,
    axis: str = "time",
    audible_db: float | None = 60.0,
) -> float:
    """Energy of the change from bin to bin relative to real music, which has 1; blurred mels have less, noisy ones more.

    Args:
        prediction: log-mels.
        target: the real ones, of the same shapes.
        config: the mel contract; needed with `audible_db`.
        axis: "time" (from frame to frame) or "frequency" (from band to band).
        audible_db: only pairs of bins count that are both within so many dB of the target's peak, in prediction and
            target alike: most bins of a log-mel are too soft to be heard and would rule the mean. `None` counts all.

    Returns:
        sum over the pieces of the prediction's mean squared change, divided by that of the targets.

    Raises:
        ValueError: unknown axis, shapes that differ, no contract for `audible_db`.
    """
    if axis not in AXES:
        raise ValueError(f"axis must be one of {sorted(AXES)}, got {axis!r}.")
    if audible_db is not None and config is None:
        raise ValueError(
            f"config must be the MelConfig of the mels where audible_db is given, got audible_db={audible_db}."
        )
    ours = theirs = 0.0
    for made, real in _pairs(prediction, target):
        audible = None if audible_db is None else audible_bins(real, config, audible_db)
        ours += _change_energy(made, axis, audible).item()
        theirs += _change_energy(real, axis, audible).item()
    return ours / theirs if theirs else math.nan


def seam(prediction: Mels, period: int, target: Mels | None = None) -> float:
    """Mean absolute change across the borders of windows, relative to the change inside them; 1 without seams.

    Args:
        prediction: log-mels that were made in windows of `period` frames.
        period: frames per window, at least 2; borders are in front of the frames period, 2 period, ...
        target: the real mels; their ratio (music may have a beat) divides the prediction's.

    Returns:
        the ratio over all pieces; NaN where no piece reaches a border or nothing changes inside windows.

    Raises:
        ValueError: `period` is below 2, or shapes that differ.
    """
    if period < 2:
        raise ValueError(f"period must be at least 2 frames, got {period}.")
    if target is not None:
        real = seam([row for _, row in _pairs(prediction, target)], period)
        return seam(prediction, period) / real if real else math.nan
    across = inside = 0.0
    borders = others = 0
    for row in _rows(prediction, "prediction"):
        change = row.diff(dim=-1).abs().mean(0)  # entry t is the step from frame t to frame t + 1
        at_border = (torch.arange(1, row.shape[-1], device=row.device) % period) == 0
        across, borders = across + change[at_border].sum().item(), borders + int(at_border.sum())
        inside, others = inside + change[~at_border].sum().item(), others + int((~at_border).sum())
    return (across / borders) / (inside / others) if borders and inside else math.nan


def drift(prediction: Mels, target: Mels, share: float = 0.25) -> float:
    """Mean absolute error at the end of the pieces relative to their beginning; above 1 where errors pile up.

    Args:
        prediction: log-mels of free-running generation.
        target: the real ones.
        share: of each piece that counts as its beginning, and as its end; in (0, 0.5].

    Returns:
        mean error of the ends divided by that of the beginnings, every piece with the same weight.

    Raises:
        ValueError: a bad share, or shapes that differ.
    """
    if not 0 < share <= 0.5:
        raise ValueError(f"share must be above 0 and at most 0.5, got {share}.")
    first = last = 0.0
    for made, real in _pairs(prediction, target):
        frames = max(1, int(made.shape[-1] * share))
        error = (made - real).abs().mean(0)
        first, last = first + error[:frames].mean().item(), last + error[-frames:].mean().item()
    return last / first if first else math.nan


def mel_statistics_distance(samples: torch.Tensor, references: torch.Tensor) -> dict[str, float]:
    """Differences between two sets of log-mels, in units of the log-mel.

    Args:
        samples: (batch, mel, column).
        references: (batch, mel, column).

    Returns:
        mean absolute differences over bands of the mean, of the standard deviation and of the mean absolute change from
        column to column, and their mean as `statistics_distance`.
    """

    def statistics(mels: torch.Tensor) -> dict[str, torch.Tensor]:
        bands = mels.float().transpose(0, 1)
        return {
            "band_mean": bands.flatten(1).mean(1),
            "band_std": bands.flatten(1).std(1),
            "band_change": bands.diff(dim=-1).abs().flatten(1).mean(1),
        }

    ours, theirs = statistics(samples), statistics(references)
    distances = {f"{name}_distance": (ours[name] - theirs[name]).abs().mean().item() for name in ours}
    return {**distances, "statistics_distance": sum(distances.values()) / len(distances)}


__all__ = ["audible_bins", "drift", "mel_statistics_distance", "seam", "sharpness"]
