"""What few steps take from the spread of ideas, given back.

A network predicts the mean of what may be; a solver that follows it in few large steps ends nearer to the mean than many small
ones would: loudness, onsets and grain vary less than in music. How much less can be measured, for whitened ideas should have
variance one at every axis and frequency. Here it is measured once per number of steps, and divided out. What is drawn may still have
other extremes than music, which is bounded above and has a floor: a last map per band gives it the values that music has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from melreformer_hf.models.idea_unet.whitening_idea import PRIOR_COUNT, IdeaWhitening, smoothed

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

_QUANTILES = 65
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

    def between(self, steps: int) -> torch.Tensor:
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
        weights = self.between(steps)
        spread = torch.einsum("s,skaf,bk->baf", weights, self.spread.float(), hats)
        shift = torch.einsum("s,ska,bk->ba", weights, self.shift.float(), hats)
        coefficients = sample.float() @ cosine.T
        coefficients[..., 0] -= shift
        return (coefficients * spread) @ cosine


class MarginalCorrection(nn.Module):
    """A rising map of the log-mels of every band, from the values that are drawn to those that music has.

    Args:
        steps: numbers of steps that have a table each.
        num_mel_bins: bands.
    """

    def __init__(self, steps: int, num_mel_bins: int) -> None:
        super().__init__()
        even = torch.linspace(-12.0, 4.0, _QUANTILES)
        self.register_buffer("drawn", even.repeat(steps, num_mel_bins, 1))  # (step count, band, quantile)
        self.register_buffer("real", even.repeat(num_mel_bins, 1))

    @staticmethod
    def table(ideas: torch.Tensor) -> torch.Tensor:
        """Quantiles (band, quantile) of (idea, mel, column) log-mels."""
        shares = torch.linspace(0.0005, 0.9995, _QUANTILES)
        return torch.stack(
            [torch.from_numpy(np.quantile(band, shares)) for band in ideas.transpose(0, 1).numpy()]
        ).float()

    def forward(self, ideas: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """(batch, mel, column) log-mels that were drawn, with `SpreadCorrection.between`'s weights, to log-mels."""
        drawn, real = torch.einsum("s,sbq->bq", weights, self.drawn.float()), self.real.float()
        # Strictly rising: bands that often lie on the floor have several equal quantiles.
        drawn = drawn + torch.arange(_QUANTILES, device=drawn.device) * 1e-4
        values = ideas.transpose(0, 1).flatten(1).contiguous()  # (band, batch * column)
        place = torch.searchsorted(drawn, values).clamp(1, _QUANTILES - 1)
        low, high = drawn.gather(1, place - 1), drawn.gather(1, place)
        share = ((values - low) / (high - low)).clamp(0, 1)
        mapped = torch.lerp(real.gather(1, place - 1), real.gather(1, place), share)
        return mapped.unflatten(1, (len(ideas), -1)).transpose(0, 1)


@torch.no_grad()
def measure_marginals(
    model: nn.Module,
    scheduler: SchedulerMixin,
    ideas: torch.Tensor,
    num_frames: torch.Tensor,
    seed: int,
) -> None:
    """Fill the map of a model from real ideas and those that it draws for their durations.

    Args:
        model: an `IdeaUNetModel` whose spread has been measured; its `marginals` are changed.
        scheduler: takes the steps.
        ideas: (idea, mel, column) log-mels, of what was trained on.
        num_frames: (idea,) their durations.
        seed: of what is drawn.
    """
    marginals, tables = model.marginals, []
    fresh = MarginalCorrection(len(model.correction.steps), ideas.shape[1])
    marginals.load_state_dict(fresh.state_dict())
    for steps in model.correction.steps:
        drawn = []
        for start in range(0, len(ideas), _BATCH):
            frames = num_frames[start : start + _BATCH]
            generators = [torch.Generator().manual_seed(seed + start + index) for index in range(len(frames))]
            found = model.sample(len(frames), generators, frames, scheduler=scheduler, num_inference_steps=steps)
            drawn.append(found.ideas.cpu())
        tables.append(MarginalCorrection.table(torch.cat(drawn)))
    marginals.drawn.copy_(torch.stack(tables))
    marginals.real.copy_(MarginalCorrection.table(ideas))


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


__all__ = ["MarginalCorrection", "SpreadCorrection", "measure_marginals", "measure_spread"]
