"""What few steps take from the spread of ideas, given back.

A network predicts the mean of what may be; a solver that follows it in few large steps ends nearer to the mean than many small
ones would: loudness, onsets and grain vary less than in music. How much less can be measured, for whitened ideas should have
variance one at every axis and frequency. Here it is measured once per number of steps, and divided out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from melreformer_hf.models.idea_unet.whitening_idea import PRIOR_COUNT, IdeaWhitening, smoothed

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

# No correction is stronger: what a sampler has lost altogether is not brought back by amplifying its noise.
_LIMITS = (0.5, 3.0)
_BATCH = 16


class SpreadCorrection(nn.Module):
    """Factors and shifts of whitened ideas for several numbers of steps, between which it interpolates.

    Args:
        steps: numbers of steps, rising.
        num_knots: durations, as of the whitening.
        num_mel_bins: axes.
        num_columns: frequencies.
    """

    def __init__(self, steps: Sequence[int], num_knots: int, num_mel_bins: int, num_columns: int) -> None:
        super().__init__()
        self.steps = tuple(steps)
        self.register_buffer("spread", torch.ones(len(steps), num_knots, num_mel_bins, num_columns))
        self.register_buffer("shift", torch.zeros(len(steps), num_knots, num_mel_bins))  # of the lowest frequency

    def _between(self, steps: int) -> torch.Tensor:
        """(step count,) weights: linear in the logarithm, the nearest one outside."""
        place = math.log(min(max(steps, self.steps[0]), self.steps[-1]))
        known = [math.log(count) for count in self.steps]
        weights = torch.zeros(len(known), device=self.spread.device)
        above = next(index for index, value in enumerate(known) if place <= value + 1e-9)
        share = 1.0 if above == 0 else (place - known[above - 1]) / (known[above] - known[above - 1])
        weights[above], weights[above - 1] = share, weights[above - 1] + 1 - share
        return weights

    def forward(self, sample: torch.Tensor, steps: int, hats: torch.Tensor, cosine: torch.Tensor) -> torch.Tensor:
        """Correct what so many steps have drawn.

        Args:
            sample: (batch, axis, column) whitened.
            steps: that drew it.
            hats: (batch, knot) weights of the durations.
            cosine: the whitening's transform.
        """
        weights = self._between(steps)
        spread = torch.einsum("s,skaf,bk->baf", weights, self.spread.float(), hats)
        shift = torch.einsum("s,ska,bk->ba", weights, self.shift.float(), hats)
        coefficients = sample.float() @ cosine.T
        coefficients[..., 0] -= shift
        return (coefficients * spread) @ cosine


@torch.no_grad()
def measure_spread(
    model: nn.Module,
    correction: SpreadCorrection,
    whitening: IdeaWhitening,
    scheduler: SchedulerMixin,
    ideas_per_duration: int,
    seed: int,
) -> None:
    """Fill a correction with what `model.sample` draws without it.

    Args:
        model: an `IdeaUNetModel` with this correction and this whitening.
        correction: is changed.
        whitening: of the model.
        scheduler: takes the steps.
        ideas_per_duration: that are drawn for every knot and number of steps.
        seed: of what is drawn.
    """
    correction.spread.fill_(1.0)
    correction.shift.zero_()
    spread, shift = torch.ones_like(correction.spread), torch.zeros_like(correction.shift)
    low, high = model.config.log2_frames_min, model.config.log2_frames_max
    for row, steps in enumerate(correction.steps):
        power = torch.ones(whitening.num_knots, *spread.shape[2:])
        for knot, place in enumerate(torch.linspace(0, 1, whitening.num_knots).tolist()):
            frames, drawn = round(2 ** (low + (high - low) * place)), []
            for start in range(0, ideas_per_duration, _BATCH):
                count = min(_BATCH, ideas_per_duration - start)
                generators = [torch.Generator().manual_seed(seed + start + index) for index in range(count)]
                found = model.sample(count, generators, frames, scheduler=scheduler, num_inference_steps=steps)
                drawn.append(
                    whitening.whiten(found.ideas, torch.full((count,), place)).cpu() @ whitening.cosine.cpu().T
                )
            coefficients = torch.cat(drawn)
            shift[row, knot] = coefficients[..., 0].mean(0)
            coefficients[..., 0] -= coefficients[..., 0].mean(0)
            power[knot] = smoothed(coefficients.square().mean(0))
        # As in the whitening: the mean of all durations stands in for ideas that were not drawn.
        kept = ideas_per_duration / (ideas_per_duration + PRIOR_COUNT)
        power = kept * power + (1 - kept) * power.mean(0)
        spread[row] = power.rsqrt().clamp(*_LIMITS)
    correction.spread.copy_(spread)
    correction.shift.copy_(shift)


__all__ = ["SpreadCorrection", "measure_spread"]
